"""Anomaly scores: the reconstruction error of the model, with PCA and nearest neighbours in code space as baselines.

Each is standardised: the number of standard deviations above the mean over reference images, which are validation
images of the model's own dataset.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.capabilities import HasPosterior, reconstruct
from models.evaluation.metrics import NUMBERS, nearest, principal_axes
from models.family import Family
from models.seeds import generator

NEIGHBOURS = 5
SHARES = (0.95, 0.99)
HOT = 0.5  # absolute difference shown white
DRAWS = 10  # codes per image in -ELBO


@dataclass(frozen=True)
class Measured:
    """Measurements of n images: codes (n, d), and mean squared errors (n,) of the model and of PCA of the same size.

    `bounds` (m,) are -ELBO for a model with a posterior; for reference images m may be smaller than n.
    """

    codes: Tensor
    errors: Tensor
    pca_errors: Tensor
    bounds: Tensor | None = None

    @classmethod
    def from_rows(cls, rows: Tensor, bounds: Tensor | None = None) -> "Measured":
        return cls(rows[:, 2:], rows[:, 0], rows[:, 1], bounds)


def measure(model: Family, basis: Tensor) -> Callable[[Tensor], Tensor]:
    """A function from images (b, c, h, w) to rows (b, 2 + d) for `Measured.from_rows`; `basis` as by `pca_basis`."""
    basis = basis.to(model.device)

    def rows(images: Tensor) -> Tensor:
        codes, reconstructions = reconstruct(model, images)
        errors = (reconstructions - images).square().flatten(1).mean(1)
        centred = images.flatten(1) - basis[0]
        residual = centred - centred @ basis[1:].T @ basis[1:]
        return torch.cat([errors[:, None], residual.square().mean(1, keepdim=True), codes], 1)

    return rows


def bound(model: Family) -> Callable[[Tensor], Tensor] | None:
    """A function from images (b, c, h, w) to -ELBO (b,) over ten draws, the same for every image; None without one.

    Unlike the reconstruction error it includes the KL term, which is large for images unlike the data.
    """
    if not isinstance(model, HasPosterior):
        return None
    noise = torch.randn(DRAWS, model.latent_dim, generator=generator(0, "bound")).to(model.device)
    return lambda images: model.negative_elbo(images, noise)


def pca_basis(images: Tensor, dimensions: int) -> Tensor:
    """(1 + k, c*h*w): the mean of images (n, c, h, w), then up to `dimensions` axes of greatest variance."""
    rows = images.flatten(1)
    mean = rows.mean(0)
    return torch.cat([mean[None], principal_axes(rows - mean, min(dimensions, *rows.shape))])


def enough_for_pca(pixels: int) -> int:
    """Number of images to fit PCA to: more would cost memory and hardly improve the axes."""
    return max(2, min(4096, NUMBERS // pixels))


class Familiar:
    """Reference scores, from validation images of the model's own dataset."""

    def __init__(self, home: Measured):
        self.home = home
        deviation = home.codes.std(0, correction=0)
        self.mean, self.scale = home.codes.mean(0), torch.where(deviation > 1e-8, deviation, torch.ones_like(deviation))
        reference = {
            "model": home.errors,
            "pca": home.pca_errors,
            "knn": self._distances(home.codes, exclude_self=True),
        }
        reference |= {} if home.bounds is None else {"elbo": home.bounds}
        self.moments = {
            name: (rows.double().mean(), rows.double().std(correction=0)) for name, rows in reference.items()
        }
        self.sorted_scores = {name: self._standardise(name, rows).sort().values for name, rows in reference.items()}

    def scores(self, measured: Measured) -> dict[str, Tensor]:
        """Standardised scores (n,) by `model`, `pca`, `knn` (distance to the nearest codes) and, for a vae, `elbo`."""
        rows = {"model": measured.errors, "pca": measured.pca_errors, "knn": self._distances(measured.codes)}
        rows |= {} if measured.bounds is None else {"elbo": measured.bounds}
        return {name: self._standardise(name, values) for name, values in rows.items()}

    def thresholds(self, name: str) -> dict[str, float]:
        """The 95 % and 99 % quantiles of the reference scores."""
        return {f"{share:.2f}": float(self.sorted_scores[name].quantile(share)) for share in SHARES}

    def standing(self, scores: Tensor) -> Tensor:
        """(n,): the share of reference images with a lower score of `model`."""
        return torch.searchsorted(self.sorted_scores["model"], scores).double() / len(self.sorted_scores["model"])

    def _standardise(self, name: str, rows: Tensor) -> Tensor:
        mean, deviation = self.moments[name]
        return (rows.double() - mean) / (deviation if deviation > 1e-12 else 1.0)

    def _distances(self, codes: Tensor, exclude_self: bool = False) -> Tensor:
        """(n,): mean distance to the nearest reference codes; `exclude_self` if `codes` are these codes."""
        reference = (self.home.codes - self.mean) / self.scale
        count = min(NEIGHBOURS + exclude_self, len(reference))
        distances = nearest((codes - self.mean) / self.scale, reference, count)[0]
        return distances[:, 1:].mean(1) if exclude_self and count > 1 else distances.mean(1)


def heat(images: Tensor, reconstructions: Tensor) -> Tensor:
    """(n, 3, h, w): heat map of the absolute difference, from black (0) over red and yellow to white (0.5)."""
    value = (images - reconstructions).abs().mean(1, keepdim=True) / HOT
    return torch.cat([value * 3, value * 3 - 1, value * 3 - 2], 1).clamp(0, 1)
