"""Losses as pure functions. Reconstruction losses sum over the numbers of an image and keep the batch axis, so that
weights mean the same at every image size and nats stay nats.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """(b, ...) twice -> (b,): the sum of squared differences of each row."""
    return (prediction - target).square().flatten(1).sum(1)


def bernoulli(logits: Tensor, target: Tensor) -> Tensor:
    """(b, ...) logits, target in [0, 1] -> (b,): -log p(target) in nats, the cross-entropy for soft targets."""
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(1).sum(1)


def gaussian_kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """(b, d) twice -> (b, d): KL(N(mean, exp(logvar)) || N(0, 1)) of each dimension, in nats (Kingma & Welling)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar)


def gaussian(mean: Tensor, log_sigma: Tensor | float, target: Tensor) -> Tensor:
    """(b, ...) -> (b,): -log N(target; mean, sigma^2), as a density over pixels in [0, 1]."""
    log_sigma = torch.as_tensor(log_sigma, dtype=mean.dtype, device=mean.device)
    constant = log_sigma + 0.5 * math.log(2 * math.pi)
    return (0.5 * ((target - mean) * torch.exp(-log_sigma)).square() + constant).flatten(1).sum(1)


def optimal_log_sigma(squared: Tensor, numbers: int, floor: float = 1 / 510) -> Tensor:
    """The log sigma that minimises `gaussian` for this squared error over `numbers` numbers (Rybkin et al. 2021).

    Never below half a grey level, where the density of 8-bit pixels would grow without bound.
    """
    return 0.5 * torch.log((squared / numbers).clamp_min(floor**2))


def discretised_logistic(mean: Tensor, log_scale: Tensor, target: Tensor) -> Tensor:
    """(b, ...) -> (b,): -log of the mass a logistic puts on the 8-bit bin of each pixel (Salimans et al. 2017, eq. 2).

    Pixels in [0, 1]; the first and last bins take the tails.
    """
    centred, inverse = target - mean, torch.exp(-log_scale)
    upper, lower = inverse * (centred + 1 / 510), inverse * (centred - 1 / 510)
    middle = torch.log((torch.sigmoid(upper) - torch.sigmoid(lower)).clamp_min(1e-12))
    # below 1e-5 the difference is rounding: use the density at the centre times the width of the bin
    density = inverse * centred - log_scale - 2 * F.softplus(inverse * centred) - math.log(255)
    inside = torch.where(middle > math.log(1e-5), middle, density)
    logs = torch.where(target < 0.5 / 255, F.logsigmoid(upper), inside)
    logs = torch.where(target > 254.5 / 255, -F.softplus(lower), logs)
    return -logs.flatten(1).sum(1)
