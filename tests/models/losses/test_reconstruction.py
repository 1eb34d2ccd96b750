"""Reconstruction losses and KL divergence against closed forms."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

from models.losses import reconstruction as losses


def test_kl_of_known_gaussians():
    mean, logvar = torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[0.0, 0.0, math.log(4.0)]])
    expected = torch.tensor([[0.0, 0.5, 0.5 * (4 - 1 - math.log(4.0))]])
    torch.testing.assert_close(losses.gaussian_kl(mean, logvar), expected)


def test_gaussian_kl_equals_torch():
    mean, logvar = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    expected = kl_divergence(Normal(mean, (logvar / 2).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(losses.gaussian_kl(mean, logvar), expected)


def test_bernoulli_and_its_gradient_equal_the_formulas():
    logits = torch.linspace(-5, 5, 12).view(2, 1, 2, 3).requires_grad_()
    target = (torch.arange(12).view(2, 1, 2, 3) % 2).float()
    loss = losses.bernoulli(logits, target)
    torch.testing.assert_close(loss, -Bernoulli(logits=logits).log_prob(target).flatten(1).sum(1))
    loss.sum().backward()
    torch.testing.assert_close(logits.grad, logits.detach().sigmoid() - target)


def test_bernoulli_is_finite_for_extreme_logits():
    logits = torch.tensor([[-1e4, 1e4, 1e4, -1e4]]).requires_grad_()
    loss = losses.bernoulli(logits, torch.tensor([[0.0, 1.0, 0.0, 1.0]]))
    loss.sum().backward()
    assert loss.item() == 2e4 and logits.grad.tolist() == [[0, 0, 1, -1]]


def test_gaussian_is_the_density_and_optimal_sigma_is_stationary():
    mean, target = torch.rand(2, 4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    expected = -Normal(mean, 0.3).log_prob(target).flatten(1).sum(1)
    torch.testing.assert_close(losses.gaussian(mean, math.log(0.3), target), expected)
    best = losses.optimal_log_sigma((mean - target).square().sum(), mean.numel()).requires_grad_()
    losses.gaussian(mean, best, target).sum().backward()
    assert abs(best.grad.item()) < 1e-3


def test_optimal_sigma_of_zero_error_is_half_a_grey_level():
    assert losses.optimal_log_sigma(torch.tensor(0.0), 10).exp().item() == pytest.approx(0.5 / 255)


@pytest.mark.parametrize("mean", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("scale", [1e-3, 0.02, 0.5])
def test_discretised_logistic_sums_to_one_over_grey_levels(mean, scale):
    levels = torch.arange(256, dtype=torch.float64).view(256, 1) / 255
    place, log_scale = torch.full_like(levels, mean), torch.tensor(math.log(scale), dtype=torch.float64)
    assert losses.discretised_logistic(place, log_scale, levels).neg().exp().sum().item() == pytest.approx(1, abs=2e-3)


def test_discretised_logistic_is_finite_far_from_its_mean():
    far = torch.tensor([[0.9]]).requires_grad_()
    loss = losses.discretised_logistic(far, torch.tensor(-7.0), torch.tensor([[0.1]]))
    loss.sum().backward()
    assert torch.isfinite(loss) and far.grad.item() > 0


def test_squared_error_is_a_sum_over_each_row():
    assert losses.squared_error(torch.zeros(2, 1, 2, 2), torch.full((2, 1, 2, 2), 0.5)).tolist() == [1.0, 1.0]
