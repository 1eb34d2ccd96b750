"""Anomaly scores: the mean of three (reconstruction error, distance to known codes, PCA error), and each one alone.

All are standardised: the number of standard deviations above the mean over reference images, which are validation
images of the model's own dataset. Which one is best depends on the data: the error misses anomalies that the model
copies well, the distance those whose codes look usual. The mean is about as good as the best of them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.capabilities import HasPosterior, reconstruct
from models.evaluation.metrics import NUMBERS, nearest, principal_axes
from models.family import Family
from models.seeds import generator

NEIGHBOURS = 5
AVERAGED = ("model", "knn", "pca")
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
    """Reference scores, from validation images of the model's own dataset.

    `known` (m, d) are the codes from which `knn` measures distances, of images the model was trained on; by default
    those of the reference images, each without itself.
    """

    def __init__(self, home: Measured, known: Tensor | None = None):
        self.home = home
        self.known = home.codes if known is None else known
        rows = self._raw(home, exclude_self=known is None)
        self.moments = {name: (row.double().mean(), row.double().std(correction=0)) for name, row in rows.items()}
        scores = self._combined({name: self._standardise(name, row) for name, row in rows.items()})
        self.moments["score"] = (scores["score"].mean(), scores["score"].std(correction=0))
        scores["score"] = self._standardise("score", scores["score"])
        self.sorted_scores = {name: values.sort().values for name, values in scores.items()}

    def scores(self, measured: Measured) -> dict[str, Tensor]:
        """Standardised scores (n,): `score`, the mean of `model` (the reconstruction error), `knn` (distance to the
        nearest known codes) and `pca`; these; and, for a vae, `elbo`.
        """
        scores = self._combined({name: self._standardise(name, row) for name, row in self._raw(measured).items()})
        return scores | {"score": self._standardise("score", scores["score"])}

    def threshold(self, share: float, name: str = "score") -> float:
        """A new normal image scores above it with a probability of at most 1 - share: a conformal quantile.

        The largest reference score if there are too few of them for that.
        """
        return float(self.sorted_scores[name][self._rank(share) - 1])

    def false_alarms(self, share: float) -> tuple[float, float]:
        """95 % interval of the fraction of normal images above `threshold`: Beta(n + 1 - k, k), k its rank."""
        from scipy.special import betaincinv

        rank, count = self._rank(share), len(self.sorted_scores["score"])
        return tuple(float(betaincinv(count + 1 - rank, rank, level)) for level in (0.025, 0.975))

    def thresholds(self, name: str) -> dict[str, float]:
        """Thresholds for the shares 95 % and 99 %."""
        return {f"{share:.2f}": self.threshold(share, name) for share in SHARES}

    def standing(self, scores: Tensor) -> Tensor:
        """(n,): the share of reference images with a lower `score`."""
        return torch.searchsorted(self.sorted_scores["score"], scores).double() / len(self.sorted_scores["score"])

    def _rank(self, share: float) -> int:
        count = len(self.sorted_scores["score"])
        return min(count, math.ceil((count + 1) * share))

    def _raw(self, measured: Measured, exclude_self: bool = False) -> dict[str, Tensor]:
        distances = self._distances(measured.codes, exclude_self)
        rows = {"model": measured.errors, "pca": measured.pca_errors, "knn": distances}
        return rows | ({} if measured.bounds is None else {"elbo": measured.bounds})

    def _combined(self, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"score": sum(scores[name] for name in AVERAGED) / len(AVERAGED), **scores}

    def _standardise(self, name: str, rows: Tensor) -> Tensor:
        mean, deviation = self.moments[name]
        return (rows.double() - mean) / (deviation if deviation > 1e-12 else 1.0)

    def _distances(self, codes: Tensor, exclude_self: bool = False) -> Tensor:
        """(n,): mean distance to the nearest known codes; `exclude_self` if `codes` are these codes."""
        count = min(NEIGHBOURS + exclude_self, len(self.known))
        distances = nearest(codes, self.known, count)[0]
        return distances[:, 1:].mean(1) if exclude_self and count > 1 else distances.mean(1)


def heat(images: Tensor, reconstructions: Tensor) -> Tensor:
    """(n, 3, h, w): heat map of the absolute difference, from black (0) over red and yellow to white (0.5)."""
    value = (images - reconstructions).abs().mean(1, keepdim=True) / HOT
    return torch.cat([value * 3, value * 3 - 1, value * 3 - 2], 1).clamp(0, 1)
