"""Adversarial losses on logits, and the two helpers of the networks that minimise them in turns.

`a` = D(x) are the logits of real images and `b` = D(G(z)) those of generated ones, both of the same shape: (n,), or
maps of patches. D and G both minimise. With sigma the sigmoid, softplus(-a) = -log sigma(a) and
softplus(b) = -log(1 - sigma(b)), so no loss overflows; only `minimax` saturates, by design.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, softplus

from models.training.ranks import average_gradients

LossName = Literal["non_saturating", "minimax", "least_squares", "hinge", "wasserstein", "relativistic"]
PatchLossName = Literal["lsgan", "bce"]


@dataclass(frozen=True)
class Loss:
    """Losses per logit: of D for a real image and for a fake, and of G. `target` is 1 unless labels are smoothed."""

    real: Callable[[Tensor, float], Tensor]
    fake: Callable[[Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]
    smooths: bool = True
    """Whether the loss depends on `target`."""


def _cross_entropy(logits: Tensor, target: float) -> Tensor:
    """-t log sigma(a) - (1 - t) log(1 - sigma(a)) = softplus(a) - t a."""
    return softplus(-logits) if target == 1 else softplus(logits) - target * logits


LOSSES: dict[str, Loss] = {
    # Goodfellow et al. 2014, eq. 1: G minimises log(1 - D(G(z))), whose gradient vanishes while D wins
    "minimax": Loss(_cross_entropy, softplus, lambda b: -softplus(b)),
    # the same paper, end of section 3: G maximises log D(G(z)) instead
    "non_saturating": Loss(_cross_entropy, softplus, lambda b: softplus(-b)),
    # Mao et al. 2017, eq. 9
    "least_squares": Loss(
        lambda a, target: (a - target).square() / 2, lambda b: b.square() / 2, lambda b: (b - 1).square() / 2
    ),
    # Lim & Ye 2017; a target below 1 is a smaller margin
    "hinge": Loss(lambda a, target: relu(target - a), lambda b: relu(1 + b), lambda b: -b),
    # Arjovsky et al. 2017, eq. 2: needs a gradient penalty beside it
    "wasserstein": Loss(lambda a, target: -a, lambda b: b, lambda b: -b, smooths=False),
    # The two losses of image translation. D minimises half of its sum, so that it learns more slowly than G:
    # non_saturating (Isola et al. 2017, section 3.3), and least_squares with G undivided (Zhu et al. 2017, section 4)
    "bce": Loss(lambda a, target: _cross_entropy(a, target) / 2, lambda b: softplus(b) / 2, lambda b: softplus(-b)),
    "lsgan": Loss(lambda a, target: (a - target).square() / 2, lambda b: b.square() / 2, lambda b: (b - 1).square()),
}
PAIRED = "relativistic"
"""Jolicoeur-Martineau 2018, in pairs (RpGAN): the logit of each real image should exceed that of the fake beside it."""


def smooths(name: LossName) -> bool:
    """Whether label smoothing and label flips change this loss: it compares each logit with a target."""
    return name != PAIRED and LOSSES[name].smooths


def discriminator_loss(
    name: LossName | PatchLossName,
    a: Tensor,
    b: Tensor,
    target: float = 1.0,
    flipped: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The mean that D minimises. `flipped` are masks (n,) of the real and the fake images whose label is swapped."""
    if name == PAIRED:
        return softplus(b - a).mean()
    loss = LOSSES[name]
    real, fake = loss.real(a, target), loss.fake(b)
    if flipped is not None:
        real = torch.where(flipped[0], loss.fake(a), real)
        fake = torch.where(flipped[1], loss.real(b, 1.0), fake)
    return real.mean() + fake.mean()


def generator_loss(name: LossName | PatchLossName, b: Tensor, a: Tensor | None = None) -> Tensor:
    """The mean that G minimises; only the relativistic loss needs the logits `a` of real images."""
    if name == PAIRED:
        return softplus(a - b).mean()
    return LOSSES[name].generator(b).mean()


def value(a: Tensor, b: Tensor) -> Tensor:
    """V(G, D) = E log D(x) + E log(1 - D(G(z))) (Goodfellow et al. 2014, eq. 1); 2 log(1/2) where D cannot tell."""
    return -softplus(-a).mean() - softplus(b).mean()


def log_odds(name: PatchLossName, logits: Tensor) -> Tensor:
    """Log-odds of real against generated; a discriminator trained with least squares outputs about a probability."""
    return logits if name == "bce" else logits.clamp(1e-3, 1 - 1e-3).logit()


@contextmanager
def frozen(*networks: nn.Module) -> Iterator[None]:
    """Inside, gradients flow through `networks` to their inputs, but not into their parameters."""
    for network in networks:
        network.requires_grad_(False)
    try:
        yield
    finally:
        for network in networks:
            network.requires_grad_(True)


def update(optimiser: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    """One step of gradient descent; returns the loss, detached."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    average_gradients([optimiser])
    optimiser.step()
    return loss.detach()
