"""A Gaussian mixture fitted to codes after training, to sample from any autoencoder (Ghosh et al. 2020)."""

import torch
from torch import Tensor, nn

from models.evaluation.metrics import principal_axes

MAX_AXES = 64


class Mixture(nn.Module):
    """Full-covariance mixture on the first 64 principal axes of the codes, in buffers of fixed shape.

    Before `fit` it is the standard normal distribution.
    """

    def __init__(self, latent_dim: int, components: int = 10):
        super().__init__()
        axes = min(latent_dim, MAX_AXES)
        self.register_buffer("centre", torch.zeros(latent_dim))
        self.register_buffer("axes", torch.eye(axes, latent_dim))
        self.register_buffer("shares", torch.full((components,), 1 / components))
        self.register_buffer("means", torch.zeros(components, axes))
        self.register_buffer("factors", torch.eye(axes).repeat(components, 1, 1))

    @torch.no_grad()
    def fit(self, codes: Tensor, generator: torch.Generator, rounds: int = 40) -> float:
        """Fit to codes (n, latent_dim) by EM; the same codes and generator give the same mixture.

        Returns the log-likelihood per code, in nats, on the whitened axes.
        """
        codes = codes.double().cpu()
        self.centre.copy_(codes.mean(0))
        centred = codes - codes.mean(0)
        axes = torch.zeros(self.axes.shape, dtype=torch.float64)
        leading = principal_axes(centred, len(axes))
        axes[: len(leading)] = leading
        scales = (centred @ axes.T).square().mean(0).sqrt()
        self.axes.copy_(axes * scales[:, None])  # standard normal coordinates have the spread of the codes
        white = (centred @ axes.T / scales.clamp_min(1e-6 * max(float(scales.max()), 1e-6))).float()
        shares, means, factors, likelihood = expectation_maximisation(white, len(self.shares), generator, rounds)
        for buffer, value in zip((self.shares, self.means, self.factors), (shares, means, factors), strict=True):
            buffer.copy_(value)
        return likelihood

    def draw(self, noise: Tensor, uniform: Tensor) -> Tensor:
        """Codes (b, latent_dim) from normal `noise` (b, latent_dim) and `uniform` (b,) in [0, 1), row by row."""
        component = torch.searchsorted(self.shares.cumsum(0)[:-1].contiguous(), uniform.contiguous(), right=True)
        noise = noise[:, : len(self.axes)]
        white = self.means[component] + (self.factors[component] @ noise[:, :, None])[:, :, 0]
        return self.centre + white @ self.axes

    def draw_gaussian(self, noise: Tensor) -> Tensor:
        """Codes (b, latent_dim) from the single Gaussian with the mean and the covariance of the fitted codes."""
        return self.centre + noise[:, : len(self.axes)] @ self.axes


def expectation_maximisation(
    rows: Tensor, components: int, generator: torch.Generator, rounds: int
) -> tuple[Tensor, Tensor, Tensor, float]:
    """EM for a mixture over rows (n, d): shares (k,), means (k, d), Cholesky factors (k, d, d), log-likelihood per row.

    Covariances are MAP estimates with the unit covariance as prior, so that a component of few or equal rows is proper.
    """
    width = rows.shape[1]
    membership = torch.nn.functional.one_hot(cluster(rows, components, generator), components).to(rows.dtype)
    previous = -torch.inf
    for _ in range(rounds):
        shares, means, factors = maximise(rows, membership)
        logs = torch.stack([log_normal(rows, mean, factor) for mean, factor in zip(means, factors, strict=True)], 1)
        joint = logs + shares.log()
        evidence = joint.logsumexp(1)
        membership, likelihood = (joint - evidence[:, None]).exp(), float(evidence.double().mean())
        if likelihood - previous < 1e-4 * width:
            break
        previous = likelihood
    return shares, means, factors, likelihood


def maximise(rows: Tensor, membership: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The M step: rows (n, d), memberships (n, k)."""
    count, width = rows.shape
    weights = membership.sum(0)
    shares = (weights + 1e-3) / (count + 1e-3 * len(weights))
    means = (membership.T @ rows) / weights.clamp_min(1e-6)[:, None]
    factors = []
    for mean, weight, share in zip(means, weights, membership.T, strict=True):
        centred = rows - mean
        scatter = (centred * share[:, None]).T @ centred
        prior = 0.1 * (width + 2)
        covariance = (scatter + prior * torch.eye(width)) / (weight + prior)
        factors.append(torch.linalg.cholesky(covariance.double() + 1e-6 * torch.eye(width)).to(rows.dtype))
    return shares, means, torch.stack(factors)


def log_normal(rows: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    """(n,): log N(row; mean, factor factor^T) in nats."""
    white = torch.linalg.solve_triangular(factor, (rows - mean).T, upper=False)
    half_log_det = factor.diagonal().log().sum()
    return -0.5 * (white.square().sum(0) + rows.shape[1] * 1.8378770664093453) - half_log_det


def cluster(rows: Tensor, components: int, generator: torch.Generator, rounds: int = 10) -> Tensor:
    """(n,): the cluster of each row by k-means, started from k-means++ centres (Arthur & Vassilvitskii 2007)."""
    own = torch.Generator().manual_seed(generator.initial_seed())
    centres = rows[torch.randint(len(rows), (1,), generator=own)]
    while len(centres) < components:
        distances = torch.cdist(rows, centres).min(1).values.square() + 1e-12
        centres = torch.cat([centres, rows[torch.multinomial(distances, 1, generator=own)]])
    for _ in range(rounds):
        assignment = torch.cdist(rows, centres).argmin(1)
        membership = torch.nn.functional.one_hot(assignment, components).to(rows.dtype)
        sizes = membership.sum(0)[:, None]
        centres = torch.where(sizes > 0, (membership.T @ rows) / sizes.clamp_min(1), centres)
    return torch.cdist(rows, centres).argmin(1)
