"""Each loss and its gradient by hand, label smoothing, label flips."""

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from models.losses.adversarial import LossName, PatchLossName, discriminator_loss, generator_loss, smooths, value

A, B = torch.tensor([0.7, -1.3]), torch.tensor([-0.4, 2.1])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def mean(function, *logits: Tensor) -> float:
    return sum(function(*row) for row in zip(*(x.tolist() for x in logits), strict=True)) / len(logits[0])


BY_HAND = {
    "minimax": (
        lambda a, b: -math.log(sigmoid(a)) - math.log(1 - sigmoid(b)),
        lambda a, b: math.log(1 - sigmoid(b)),
        lambda a, b: -sigmoid(b),
    ),
    "non_saturating": (
        lambda a, b: -math.log(sigmoid(a)) - math.log(1 - sigmoid(b)),
        lambda a, b: -math.log(sigmoid(b)),
        lambda a, b: sigmoid(b) - 1,
    ),
    "least_squares": (
        lambda a, b: (a - 1) ** 2 / 2 + b**2 / 2,
        lambda a, b: (b - 1) ** 2 / 2,
        lambda a, b: b - 1,
    ),
    "hinge": (lambda a, b: max(0, 1 - a) + max(0, 1 + b), lambda a, b: -b, lambda a, b: -1),
    "wasserstein": (lambda a, b: b - a, lambda a, b: -b, lambda a, b: -1),
    "relativistic": (
        lambda a, b: -math.log(sigmoid(a - b)),
        lambda a, b: -math.log(sigmoid(b - a)),
        lambda a, b: sigmoid(b - a) - 1,
    ),
    "bce": (
        lambda a, b: (-math.log(sigmoid(a)) - math.log(1 - sigmoid(b))) / 2,
        lambda a, b: -math.log(sigmoid(b)),
        lambda a, b: sigmoid(b) - 1,
    ),
    "lsgan": (lambda a, b: ((a - 1) ** 2 + b**2) / 2, lambda a, b: (b - 1) ** 2, lambda a, b: 2 * (b - 1)),
}


@pytest.mark.parametrize("name", [*get_args(LossName), *get_args(PatchLossName)])
def test_losses_and_gradient_equal_the_formulas(name):
    wanted_d, wanted_g, slope = BY_HAND[name]
    b = B.clone().requires_grad_()
    assert float(discriminator_loss(name, A, B)) == pytest.approx(mean(wanted_d, A, B), abs=1e-6)
    loss = generator_loss(name, b, A)
    assert loss.item() == pytest.approx(mean(wanted_g, A, B), abs=1e-6)
    (found,) = torch.autograd.grad(loss, b)
    assert found.tolist() == pytest.approx([slope(x, y) / 2 for x, y in zip(A.tolist(), B.tolist(), strict=True)])


def test_minimax_gradient_vanishes_and_non_saturating_does_not():
    b = torch.full((4,), -30.0, requires_grad=True)  # D is certain that they are fake
    (saturating,) = torch.autograd.grad(generator_loss("minimax", b), b)
    (other,) = torch.autograd.grad(generator_loss("non_saturating", b), b)
    assert saturating.abs().max() < 1e-12
    assert torch.allclose(other, torch.full((4,), -0.25))


@pytest.mark.parametrize("name", get_args(LossName))
def test_extreme_logits_stay_finite(name):
    far = torch.tensor([1e4, -1e4], requires_grad=True)
    loss = discriminator_loss(name, far, far.flip(0), 0.9 if smooths(name) else 1.0) + generator_loss(name, far, far)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(far.grad).all()


def test_label_smoothing_is_one_sided():
    for name in ("minimax", "non_saturating"):
        loss = discriminator_loss(name, A, B, target=0.9)
        hand = mean(lambda a: -0.9 * math.log(sigmoid(a)) - 0.1 * math.log(1 - sigmoid(a)), A)
        assert float(loss) == pytest.approx(hand + mean(lambda b: -math.log(1 - sigmoid(b)), B), abs=1e-6)
    assert float(discriminator_loss("least_squares", A, B, 0.9)) == pytest.approx(
        mean(lambda a, b: (a - 0.9) ** 2 / 2 + b**2 / 2, A, B), abs=1e-6
    )


def test_flipped_rows_have_the_loss_of_the_other_label():
    first, none = torch.tensor([True, False]), torch.tensor([False, False])
    loss = discriminator_loss("non_saturating", A, B, flipped=(first, none))
    a0, a1 = A.tolist()
    hand = (-math.log(1 - sigmoid(a0)) - math.log(sigmoid(a1))) / 2 + mean(lambda b: -math.log(1 - sigmoid(b)), B)
    assert float(loss) == pytest.approx(hand, abs=1e-6)
    everything = torch.tensor([True, True])
    swapped = discriminator_loss("non_saturating", A, B, flipped=(everything, everything))
    assert float(swapped) == pytest.approx(float(discriminator_loss("non_saturating", B, A)), abs=1e-6)


def test_value_of_a_blind_discriminator_is_twice_log_one_half():
    assert float(value(torch.zeros(5), torch.zeros(5))) == pytest.approx(2 * math.log(0.5))
