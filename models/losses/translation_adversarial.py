"""What the two sides of a translation descend, on patch maps of logits: means over everything (Isola et al. 2017)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KINDS = ("lsgan", "bce")


def judge_loss(kind: str, real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss on logits of real and generated images; half the sum, which slows it beside G."""
    if kind == "bce":
        return (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2
    return ((real - 1).square().mean() + fake.square().mean()) / 2


def fool_loss(kind: str, fake: Tensor) -> Tensor:
    """The generator's non-saturating loss on the logits of its images."""
    return F.softplus(-fake).mean() if kind == "bce" else (fake - 1).square().mean()


def log_odds(kind: str, logits: Tensor) -> Tensor:
    """What a discriminator's map says of real against made; with least squares its outputs are near probabilities."""
    return logits if kind == "bce" else logits.clamp(1e-3, 1 - 1e-3).logit()


@contextmanager
def frozen(*networks: nn.Module) -> Iterator[None]:
    """Gradients flow through `networks` but not into them."""
    for network in networks:
        network.requires_grad_(False)
    try:
        yield
    finally:
        for network in networks:
            network.requires_grad_(True)


def constant_then_linear(progress: float) -> float:
    """Factor on the learning rate: 1 for the first half, then linearly to 0, as both translation papers."""
    return min(1.0, 2 * (1 - progress))


def update(optimiser: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    """One descent step; returns the loss without its graph."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    return loss.detach()
