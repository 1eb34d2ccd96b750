"""How close generated images are to real ones in the features of a frozen network, beside floors and trivial samplers.

Every distance is biased by the number of images, so each comes with the same distance between two sets of real images
of that number.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from models.data import Columns
from models.features import FeatureNet, blurred, feature_net
from models.metrics import CHUNK, nearest, spread
from models.seeds import generator

IMAGES = 2000
FEWEST = 4  # with fewer a covariance says nothing
ROUNDS = 40  # of the bootstrap
NEIGHBOURS = 3


def frechet(found: Tensor, wanted: Tensor) -> float:
    """|m - m'|^2 + tr(C + C' - 2 (C C')^1/2) of Gaussians fitted to rows (n, d) (Heusel et al. 2017, eq. 6)."""
    found, wanted = found.double(), wanted.double()
    first, second = found.T.cov(correction=0), wanted.T.cov(correction=0)
    values, vectors = torch.linalg.eigh(first)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp_min(0).sqrt().sum()
    shift = (found.mean(0) - wanted.mean(0)).square().sum()
    return max(0.0, float(shift + first.trace() + second.trace() - 2 * cross))


def kernel_distance(found: Tensor, wanted: Tensor) -> float:
    """The squared MMD with kernel (x.y / d + 1)^3, unbiased: about 0 where nothing differs (Binkowski et al. 2018)."""
    found, wanted = found.double(), wanted.double()
    n, m, d = len(found), len(wanted), found.shape[1]
    inside = [(((rows @ rows.T) / d + 1) ** 3) for rows in (found, wanted)]
    means = [(kernel.sum() - kernel.trace()) / (k * (k - 1)) for kernel, k in zip(inside, (n, m), strict=True)]
    return float(means[0] + means[1] - 2 * (((found @ wanted.T) / d + 1) ** 3).mean())


def coverage(points: Tensor, reference: Tensor) -> float:
    """Share of `points` within the k-nearest-neighbour ball of some `reference` row (Kynkaanniemi et al. 2019, eq. 1).

    Of generated in real it is precision, of real in generated recall.
    """
    count = min(NEIGHBOURS, len(reference) - 1)
    radii = nearest(reference, reference, count + 1)[0][:, -1]
    inside = [(torch.cdist(part, reference) <= radii).any(1) for part in points.split(CHUNK)]
    return float(torch.cat(inside).double().mean())


def interval(measure: Callable[[Tensor, Tensor], float], found: Tensor, wanted: Tensor) -> tuple[float, float]:
    """A 90 % bootstrap interval around the estimate; resampling adds a bias of its own, which is taken off."""
    draws, values = generator(0, "bootstrap"), []
    for _ in range(ROUNDS):
        picked = [torch.randint(len(rows), (len(rows),), generator=draws) for rows in (found, wanted)]
        values.append(measure(found[picked[0]], wanted[picked[1]]))
    ends = torch.tensor(values, dtype=torch.float64)
    low, high = (ends - ends.mean()).quantile(torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
    centre = measure(found, wanted)
    return centre + low, centre + high


def copied(found: Tensor, known: Tensor, unseen: Tensor) -> float:
    """Share of images nearer to a known one than 95 % of unseen images are, in pixels; a fair sampler has .05."""
    flat = [images.flatten(1) for images in (found, unseen, known)]
    usual = nearest(flat[1], flat[2])[0][:, 0].quantile(0.05)
    return float((nearest(flat[0], flat[2])[0][:, 0] < usual).double().mean())


def evenness(labels: Tensor, classes: int) -> float:
    """Entropy of how often each class occurs, as a share of the greatest possible: 0 for one class alone."""
    shares = torch.bincount(labels, minlength=classes).double() / len(labels)
    return max(0.0, float(-torch.xlogy(shares, shares).sum() / math.log(classes)))


class Fidelity:
    """The measure of one dataset: its frozen network, real images it has not seen, and the numbers that need no model.

    A quarter of the training images is kept from the network, so that the floor compares two sets it does not know.
    """

    def __init__(self, train: Columns, validation: Columns, device: torch.device, classes: int | None = None):
        total = len(train.columns["images"])
        kept = torch.arange(0, total, 4 if total >= 4 else 1)
        seen = torch.arange(total)[torch.arange(total) % 4 != 0] if total >= 4 else kept
        self.labelled = classes is not None and classes > 1 and "labels" in train
        self.net: FeatureNet = feature_net(train, seen, device, classes if self.labelled else None)
        self.device = device
        self.count = min(IMAGES, len(kept), len(validation.columns["images"]))
        self.known = train.rows(kept[: self.count], ["images"])["images"].cpu()
        self.unseen = torch.cat(list(spread(validation, limit=self.count))).cpu()
        # scaled on whole and damaged images: what only reacts to damage would else be magnified without bound
        noisy = self.known + 0.1 * torch.randn(self.known.shape, generator=generator(0, "noisy"))
        rows = torch.cat([self._raw(images) for images in (self.known, blurred(self.known), noisy)])
        self.mean, self.scale = rows.mean(0), rows.std(0, correction=0).clamp_min(1e-4)
        self.floor, self.wanted = self.rows(self.known), self.rows(self.unseen)

    def rows(self, images: Tensor) -> Tensor:
        """(n, c, h, w) in [0, 1] -> (n, 64), each feature standardised."""
        return (self._raw(images) - self.mean) / self.scale

    def predicted(self, images: Tensor) -> Tensor:
        """(n, k) logits of the frozen network."""
        return torch.cat([self.net(part.to(self.device)).cpu() for part in images.split(CHUNK)])

    def _raw(self, images: Tensor) -> Tensor:
        return torch.cat([self.net.features(part.to(self.device)).cpu() for part in images.split(CHUNK)])

    def report(self, found: Tensor) -> dict[str, float]:
        """Distances of `found` (count, c, h, w), with intervals, floors and the distances of two trivial samplers."""
        if len(found) < FEWEST:
            return {}
        rows, floor = self.rows(found), self.floor
        facts: dict[str, float] = {"fidelity_images": float(len(found))}
        for name, measure in (("fd", frechet), ("kid", kernel_distance)):
            low, high = interval(measure, rows, self.wanted)
            facts |= {name: measure(rows, self.wanted), f"{name}_low": low, f"{name}_high": high}
            facts[f"{name}_floor"] = measure(floor, self.wanted)
            facts[f"{name}_blurred"] = measure(self.rows(blurred(self.known)), self.wanted)
            facts[f"{name}_repeated"] = measure(floor[:1].expand_as(floor), self.wanted)
        facts |= {"precision": coverage(rows, self.wanted), "recall": coverage(self.wanted, rows)}
        facts |= {"precision_floor": coverage(floor, self.wanted), "recall_floor": coverage(self.wanted, floor)}
        return facts | {"copied": copied(found, self.known, self.unseen)}
