"""Adversarial losses on logits: `a` = D(x) of real images and `b` = D(G(z)) of generated ones, both (n,).

Both players minimise. With sigma the sigmoid, softplus(-a) = -log sigma(a) and softplus(b) = -log(1 - sigma(b)), so
nothing here saturates numerically, and what saturates by design (`minimax`) does so visibly.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

LossName = Literal["non_saturating", "minimax", "least_squares", "hinge", "wasserstein", "relativistic"]


@dataclass(frozen=True)
class Loss:
    """What each player pays for one logit; `target` is what a real image should be taken for, 1 unless smoothed."""

    real: Callable[[Tensor, float], Tensor]
    fake: Callable[[Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]
    smooths: bool = True
    """Whether `target` means anything."""


def _cross_entropy(logits: Tensor, target: float) -> Tensor:
    """-t log sigma(a) - (1 - t) log(1 - sigma(a)) = softplus(a) - t a."""
    return softplus(-logits) if target == 1 else softplus(logits) - target * logits


LOSSES: dict[str, Loss] = {
    # Goodfellow et al. 2014, eq. 1: G descends log(1 - D(G(z))), whose gradient vanishes while D wins
    "minimax": Loss(_cross_entropy, softplus, lambda b: -softplus(b)),
    # the same paper, end of section 3: G ascends log D(G(z)) instead
    "non_saturating": Loss(_cross_entropy, softplus, lambda b: softplus(-b)),
    # Mao et al. 2017, eq. 9
    "least_squares": Loss(
        lambda a, target: (a - target).square() / 2, lambda b: b.square() / 2, lambda b: (b - 1).square() / 2
    ),
    # Lim & Ye 2017; a target below 1 is a smaller margin
    "hinge": Loss(lambda a, target: relu(target - a), lambda b: relu(1 + b), lambda b: -b),
    # Arjovsky et al. 2017, eq. 2: needs a gradient penalty beside it
    "wasserstein": Loss(lambda a, target: -a, lambda b: b, lambda b: -b, smooths=False),
}
PAIRED = "relativistic"
"""Jolicoeur-Martineau 2018 with pairs (RpGAN): a real image should look more real than the fake beside it."""


def smooths(name: LossName) -> bool:
    """Whether label smoothing and flips have a meaning: the loss judges each image against a target."""
    return name != PAIRED and LOSSES[name].smooths


def discriminator_loss(
    name: LossName, a: Tensor, b: Tensor, target: float = 1.0, flipped: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """The mean D minimises. `flipped` are masks (n,) of real and fake images passed off as the other kind."""
    if name == PAIRED:
        return softplus(b - a).mean()
    loss = LOSSES[name]
    real, fake = loss.real(a, target), loss.fake(b)
    if flipped is not None:
        real = torch.where(flipped[0], loss.fake(a), real)
        fake = torch.where(flipped[1], loss.real(b, 1.0), fake)
    return real.mean() + fake.mean()


def generator_loss(name: LossName, b: Tensor, a: Tensor | None = None) -> Tensor:
    """The mean G minimises; only the relativistic loss looks at real logits `a`."""
    if name == PAIRED:
        return softplus(a - b).mean()
    return LOSSES[name].generator(b).mean()


def value(a: Tensor, b: Tensor) -> Tensor:
    """V(G, D) = E log D(x) + E log(1 - D(G(z))), eq. 1 of the 2014 paper; 2 log(1/2) when D cannot tell."""
    return -softplus(-a).mean() - softplus(b).mean()
