"""How unfamiliar an image is: how badly the model draws it, beside two rivals that need no such model.

Each is counted in standard deviations from what is usual for images the model is at home with.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.capabilities import HasPosterior
from models.evaluation.metrics import NUMBERS, nearest, principal_axes
from models.evaluation.reconstruct import reconstruct
from models.family import Family
from models.seeds import generator

NEIGHBOURS = 5
SHARES = (0.95, 0.99)
HOT = 0.5
DRAWS = 10


@dataclass(frozen=True)
class Measured:
    """Of images: codes (n, d), mean squared errors of reconstruction (n,), and of PCA with as many numbers (n,).

    Of a model with a bound -ELBO too; of images at home it may be known of fewer than the rest.
    """

    codes: Tensor
    errors: Tensor
    pca_errors: Tensor
    bounds: Tensor | None = None

    @classmethod
    def from_rows(cls, rows: Tensor, bounds: Tensor | None = None) -> "Measured":
        return cls(rows[:, 2:], rows[:, 0], rows[:, 1], bounds)


def measure(model: Family, basis: Tensor) -> Callable[[Tensor], Tensor]:
    """A function from images (b, c, h, w) to rows (b, 2 + d) for `Measured.from_rows`; `basis` is of `pca_basis`."""
    basis = basis.to(model.device)

    def rows(images: Tensor) -> Tensor:
        codes, drawn = reconstruct(model, images)
        errors = (drawn - images).square().flatten(1).mean(1)
        centred = images.flatten(1) - basis[0]
        left = centred - centred @ basis[1:].T @ basis[1:]
        return torch.cat([errors[:, None], left.square().mean(1, keepdim=True), codes], 1)

    return rows


def bound(model: Family) -> Callable[[Tensor], Tensor] | None:
    """A function from images (b, c, h, w) to -ELBO (b,) over ten draws, the same for every image; None: no such bound.

    A reconstruction from the mean hides what the code had to pay for it; an image far from the data pays dearly.
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
    """Images beyond which the axes gain little and memory suffers."""
    return max(2, min(4096, NUMBERS // pixels))


class Familiar:
    """What is usual: measured on images the model has not learned from, of data that it has."""

    def __init__(self, home: Measured):
        self.home = home
        spread = home.codes.std(0, correction=0)
        self.mean, self.spread = home.codes.mean(0), torch.where(spread > 1e-8, spread, torch.ones_like(spread))
        usual = {"model": home.errors, "pca": home.pca_errors, "knn": self._distances(home.codes, itself=True)}
        usual |= {} if home.bounds is None else {"elbo": home.bounds}
        self.usual = {name: (rows.double().mean(), rows.double().std(correction=0)) for name, rows in usual.items()}
        self.normal = {name: self._standard(name, rows).sort().values for name, rows in usual.items()}

    def scores(self, measured: Measured) -> dict[str, Tensor]:
        """By `model`, `pca`, `knn` (distance to the nearest codes) and, of a vae, `elbo`: (n,), 0 is usual, 3 rare."""
        rows = {"model": measured.errors, "pca": measured.pca_errors, "knn": self._distances(measured.codes)}
        rows |= {} if measured.bounds is None else {"elbo": measured.bounds}
        return {name: self._standard(name, values) for name, values in rows.items()}

    def thresholds(self, name: str) -> dict[str, float]:
        """Scores that 95 % and 99 % of familiar images do not exceed."""
        return {f"{share:.2f}": float(self.normal[name].quantile(share)) for share in SHARES}

    def standing(self, scores: Tensor) -> Tensor:
        """(n,): the share of familiar images with a lower score of `model`."""
        return torch.searchsorted(self.normal["model"], scores).double() / len(self.normal["model"])

    def _standard(self, name: str, rows: Tensor) -> Tensor:
        mean, spread = self.usual[name]
        return (rows.double() - mean) / (spread if spread > 1e-12 else 1.0)

    def _distances(self, codes: Tensor, itself: bool = False) -> Tensor:
        """Mean distance to the nearest codes of home; without `itself`, which is among them."""
        reference = (self.home.codes - self.mean) / self.spread
        count = min(NEIGHBOURS + itself, len(reference))
        found = nearest((codes - self.mean) / self.spread, reference, count)[0]
        return found[:, 1:].mean(1) if itself and count > 1 else found.mean(1)


def heat(images: Tensor, drawn: Tensor) -> Tensor:
    """(n, 3, h, w): where images differ from what was drawn, from black over red and yellow to white at half a unit."""
    value = (images - drawn).abs().mean(1, keepdim=True) / HOT
    return torch.cat([value * 3, value * 3 - 1, value * 3 - 2], 1).clamp(0, 1)
