"""Reconstruction losses, KL divergence and contraction, as pure functions.

Reconstruction losses sum over the pixels and channels of an image and keep the batch axis: (b, ...) -> (b,), in nats
where they are likelihoods.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """(b, ...) twice -> (b,): sum of squared differences of each row."""
    return (prediction - target).square().flatten(1).sum(1)


def bernoulli(logits: Tensor, target: Tensor) -> Tensor:
    """(b, ...) logits, target in [0, 1] -> (b,): -log p(target) = -t log s(l) - (1 - t) log(1 - s(l)), in nats."""
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(1).sum(1)


def gaussian_kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """(b, d) twice -> (b, d): KL(N(mean, exp(logvar)) || N(0, 1)) of each dimension, in nats.

    1/2 (mean^2 + sigma^2 - 1 - log sigma^2)  (Kingma & Welling 2014, appendix B)
    """
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar)


def gaussian(mean: Tensor, log_sigma: Tensor | float, target: Tensor) -> Tensor:
    """(b, ...) -> (b,): -log N(target; mean, sigma^2), a density over pixels in [0, 1], in nats."""
    log_sigma = torch.as_tensor(log_sigma, dtype=mean.dtype, device=mean.device)
    constant = log_sigma + 0.5 * math.log(2 * math.pi)
    return (0.5 * ((target - mean) * torch.exp(-log_sigma)).square() + constant).flatten(1).sum(1)


def optimal_log_sigma(squared: Tensor, numbers: int, floor: float = 1 / 510) -> Tensor:
    """The log sigma that minimises `gaussian` for this squared error over `numbers` numbers (Rybkin et al. 2021).

    At least half a grey level; below, the density of 8-bit pixels would grow without bound.
    """
    return 0.5 * torch.log((squared / numbers).clamp_min(floor**2))


def discretised_logistic(mean: Tensor, log_scale: Tensor, target: Tensor) -> Tensor:
    """(b, ...) -> (b,): -log of the probability that a logistic gives to the 8-bit bin of each pixel, in nats.

    Pixels are in [0, 1]; the first and the last bin include the tails (Salimans et al. 2017, eq. 2).
    """
    centred, inverse = target - mean, torch.exp(-log_scale)
    upper, lower = inverse * (centred + 1 / 510), inverse * (centred - 1 / 510)
    middle = torch.log((torch.sigmoid(upper) - torch.sigmoid(lower)).clamp_min(1e-12))
    # below 1e-5 the difference is rounding error: use the density at the centre times the width of the bin
    density = inverse * centred - log_scale - 2 * F.softplus(inverse * centred) - math.log(255)
    inside = torch.where(middle > math.log(1e-5), middle, density)
    logs = torch.where(target < 0.5 / 255, F.logsigmoid(upper), inside)
    logs = torch.where(target > 254.5 / 255, -F.softplus(lower), logs)
    return -logs.flatten(1).sum(1)


def one_layer_contraction(derivatives: Tensor, weight: Tensor) -> Tensor:
    """(b, d) derivatives of f, (d, n) weight W -> (b,): |J|_F^2 of f(W x + b) (Rifai et al. 2011, eq. 3)."""
    return derivatives.square() @ weight.square().sum(1)


def hutchinson_contraction(codes: Tensor, images: Tensor, draws: torch.Generator, probes: int = 1) -> Tensor:
    """(b,): an unbiased estimate of |J|_F^2, J the Jacobian of codes (b, d) in images: E |J^T v|^2, v of random signs.

    `images` must require gradients. The estimate is differentiable.
    """
    total = torch.zeros(len(images), device=images.device)
    for _ in range(probes):
        signs = torch.randint(2, codes.shape, generator=draws, device=codes.device, dtype=codes.dtype) * 2 - 1
        (gradient,) = torch.autograd.grad((codes * signs).sum(), images, create_graph=True)
        total = total + gradient.flatten(1).square().sum(1)
    return total / probes


def activity_divergence(activity: Tensor, target: float) -> Tensor:
    """(d,): KL(Bernoulli(target) || Bernoulli(activity)) of the mean activity (d,) of units, in (0, 1)."""
    activity = activity.clamp(1e-6, 1 - 1e-6)
    return target * torch.log(target / activity) + (1 - target) * torch.log((1 - target) / (1 - activity))
