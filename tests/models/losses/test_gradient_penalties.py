"""Gradient penalties of linear critics, whose gradient is their weight everywhere."""

import pytest
import torch

from models.losses.gradient_penalties import one_centred_penalty, path_lengths, zero_centred_penalty

SHAPE = (6, 2, 5, 4)
WEIGHT = torch.randn(SHAPE[1:], generator=torch.Generator().manual_seed(1))


def linear(weight):
    return lambda images: (images * weight).sum((1, 2, 3)) + 3.0


def test_r1_of_a_linear_critic_is_its_squared_weight():
    weight = WEIGHT.clone().requires_grad_()
    images = torch.randn(SHAPE, requires_grad=True)
    penalty = zero_centred_penalty(linear(weight)(images), images)
    assert penalty.item() == pytest.approx(float(WEIGHT.square().sum()), rel=1e-6)
    penalty.backward()
    torch.testing.assert_close(weight.grad, 2 * WEIGHT)  # it reaches the parameters


def test_r1_sums_over_pixels_and_averages_over_images():
    images = torch.full((2, 1, 1, 1), 0.0, requires_grad=True)
    logits = images[:, 0, 0, 0] * torch.tensor([1.0, 3.0])
    assert zero_centred_penalty(logits, images).item() == pytest.approx((1 + 9) / 2)


@pytest.mark.parametrize("scale", [0.25, 1.0, 4.0])
def test_wgan_gp_of_a_linear_critic_is_by_hand(scale):
    weight = (WEIGHT / WEIGHT.norm() * scale).requires_grad_()
    penalty = one_centred_penalty(
        linear(weight), torch.randn(SHAPE), torch.randn(SHAPE), torch.Generator().manual_seed(0)
    )
    assert penalty.item() == pytest.approx((scale - 1) ** 2, abs=1e-6)
    penalty.backward()
    torch.testing.assert_close(weight.grad, 2 * (scale - 1) * WEIGHT / WEIGHT.norm(), atol=1e-5, rtol=1e-5)


def test_wgan_gp_is_evaluated_between_real_and_fake():
    reals, fakes = torch.zeros(64, 1, 1, 1), torch.ones(64, 1, 1, 1)
    seen = []

    def critic(images):
        seen.append(images.detach())
        return images.sum((1, 2, 3))

    one_centred_penalty(critic, reals, fakes, torch.Generator().manual_seed(0))
    assert seen[0].min() > 0 and seen[0].max() < 1 and 0.4 < seen[0].mean() < 0.6


def test_wgan_gp_of_a_constant_critic_is_finite():
    weight = torch.zeros(SHAPE[1:], requires_grad=True)
    penalty = one_centred_penalty(
        linear(weight), torch.randn(SHAPE), torch.randn(SHAPE), torch.Generator().manual_seed(0)
    )
    penalty.backward()
    assert penalty.item() == pytest.approx(1, abs=1e-5) and torch.isfinite(weight.grad).all()


def test_path_length_of_a_linear_generator_is_that_of_its_transpose():
    matrix = torch.randn(3, 8, generator=torch.Generator().manual_seed(2))
    styles = torch.randn(4, 3, requires_grad=True)
    images = (styles @ matrix).reshape(4, 2, 2, 2)
    lengths = path_lengths(images, styles, torch.Generator().manual_seed(5))
    directions = torch.randn(images.shape, generator=torch.Generator().manual_seed(5)) / 2  # sqrt(2 * 2 pixels)
    torch.testing.assert_close(lengths, (directions.flatten(1) @ matrix.T).norm(dim=1))
