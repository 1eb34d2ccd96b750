"""How close generated images are to real ones in the features of a frozen network, beside floors and trivial samplers.

Every distance is biased by the number of images, so each comes with the same distance between two sets of real images
of that number.
"""

import math
from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from models.capabilities import takes_labels
from models.context import StepContext
from models.data import Columns
from models.evaluation.feature_network import FeatureNet, blank_net, blurred, feature_net
from models.evaluation.metrics import CHUNK, nearest, spread
from models.family import Family
from models.seeds import generator
from models.types import DataSpec

IMAGES = 2000
FEWEST = 4  # with fewer a covariance says nothing
ROUNDS = 40  # of the bootstrap
NEIGHBOURS = 3
KEPT = "features-2"
"""Name in the dataset's cache; the number grows when what it means changes."""
LEARNED = ("mean", "scale", "floor", "wanted", "usual", "trivial")
TRIVIAL = (
    "fd_floor", "fd_blurred", "fd_repeated", "kid_floor", "kid_blurred", "kid_repeated", "precision_floor",
    "recall_floor",
)  # fmt: skip


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
    tables = kernel(found, found), kernel(wanted, wanted)
    inside = [(table.sum() - table.trace()) / (len(table) * (len(table) - 1)) for table in tables]
    return float(inside[0] + inside[1] - 2 * kernel(found, wanted).mean())


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
    draws = generator(0, "bootstrap")
    selection = [resample(draws, found, wanted) for _ in range(ROUNDS)]
    return spread_around(measure(found, wanted), [measure(found[mine], wanted[theirs]) for mine, theirs in selection])


def kernel_interval(found: Tensor, wanted: Tensor) -> tuple[float, float]:
    """`interval` of `kernel_distance`, with every kernel computed once: a resampled row is a row with a weight."""
    n, m = len(found), len(wanted)
    first, second, across = (kernel(*rows) for rows in ((found, found), (wanted, wanted), (found, wanted)))
    draws, values = generator(0, "bootstrap"), []
    for _ in range(ROUNDS):
        selection = zip(resample(draws, found, wanted), (n, m), strict=True)
        f, w = (torch.bincount(rows, minlength=count).double() for rows, count in selection)
        inside = [(x @ k @ x - x @ k.diagonal()) / (c * (c - 1)) for x, k, c in ((f, first, n), (w, second, m))]
        values.append(float(inside[0] + inside[1] - 2 * (f @ across @ w) / (n * m)))
    return spread_around(kernel_distance(found, wanted), values)


def kernel(found: Tensor, wanted: Tensor) -> Tensor:
    """(n, d), (m, d) -> (n, m): (x.y / d + 1)^3."""
    return (found.double() @ wanted.double().T / found.shape[1] + 1) ** 3


def resample(draws: torch.Generator, *sets: Tensor) -> list[Tensor]:
    return [torch.randint(len(rows), (len(rows),), generator=draws) for rows in sets]


def spread_around(centre: float, values: list[float]) -> tuple[float, float]:
    ends = torch.tensor(values, dtype=torch.float64)
    low, high = (ends - ends.mean()).quantile(torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
    return centre + low, centre + high


def usual_distance(known: Tensor, unseen: Tensor) -> Tensor:
    """(): how near to a known image, in pixels, only one unseen image in twenty comes."""
    return nearest(unseen.flatten(1), known.flatten(1))[0][:, 0].quantile(0.05)


def copied(found: Tensor, known: Tensor, usual: Tensor) -> float:
    """Share of images nearer to a known one than `usual`; a fair sampler has .05."""
    return float((nearest(found.flatten(1), known.flatten(1))[0][:, 0] < usual).double().mean())


def evenly(length: int, count: int) -> Tensor:
    """(count,) places from the first to the last of `length`: what is sorted by class is seen in all its classes."""
    return torch.linspace(0, length - 1, count).long()


def evenness(labels: Tensor, classes: int) -> float:
    """Entropy of how often each class occurs, as a share of the greatest possible: 0 for one class alone."""
    shares = torch.bincount(labels, minlength=classes).double() / len(labels)
    return max(0.0, float(-torch.xlogy(shares, shares).sum() / math.log(classes)))


class Fidelity:
    """The measure of one dataset: its frozen network, real images it has not seen, and the numbers that need no model.

    A quarter of the training images is kept from the network, so that the floor compares two sets it does not know.
    All of it but the images is learned once and kept in the cache of the dataset, if it has one.
    """

    def __init__(self, train: Columns, validation: Columns, device: torch.device, classes: int | None = None):
        total = len(train.columns["images"])
        kept = torch.arange(0, total, 4 if total >= 4 else 1)
        seen = torch.arange(total)[torch.arange(total) % 4 != 0] if total >= 4 else kept
        self.labelled = classes is not None and classes > 1 and "labels" in train
        self.device = device
        self.count = min(IMAGES, len(kept), len(validation.columns["images"]))
        self.known = train.rows(kept[evenly(len(kept), self.count)], ["images"])["images"].cpu()
        self.unseen = torch.cat(list(spread(validation, limit=self.count))).cpu()
        classes = classes if self.labelled else None
        if not (train.cache and self._take(train.cache.get(KEPT), blank_net(train, device, classes))):
            self._learn(train, seen, classes)
            if train.cache:  # what is kept counts, also when another training was faster
                self._take(train.cache.put(KEPT, self._state()), self.net)

    def _learn(self, train: Columns, seen: Tensor, classes: int | None) -> None:
        self.net: FeatureNet = feature_net(train, seen, self.device, classes)
        # scaled on whole and damaged images: what only reacts to damage would else be magnified without bound
        noisy = self.known + 0.1 * torch.randn(self.known.shape, generator=generator(0, "noisy"))
        rows = torch.cat([self._raw(images) for images in (self.known, blurred(self.known), noisy)])
        self.mean, self.scale = rows.mean(0), rows.std(0, correction=0).clamp_min(1e-4)
        self.floor, self.wanted = self.rows(self.known), self.rows(self.unseen)
        self.usual, self.trivial = usual_distance(self.known, self.unseen), self._trivial()

    def _trivial(self) -> Tensor:
        """The numbers of TRIVIAL: two sets of real images, blurred ones, and one image for ever."""
        if self.count < FEWEST:
            return torch.zeros(len(TRIVIAL), dtype=torch.float64)
        sets = self.floor, self.rows(blurred(self.known)), self.floor[:1].expand_as(self.floor)
        found = [measure(rows, self.wanted) for measure in (frechet, kernel_distance) for rows in sets]
        found += [coverage(self.floor, self.wanted), coverage(self.wanted, self.floor)]
        return torch.tensor(found, dtype=torch.float64)

    def _state(self) -> dict[str, Tensor]:
        net = {f"net.{name}": tensor for name, tensor in self.net.state_dict().items()}
        return net | {name: getattr(self, name) for name in LEARNED}

    def _take(self, state: dict[str, Tensor] | None, net: FeatureNet) -> bool:
        """Whether `state`, once kept, fits these images and could be taken over."""
        if state is None or not {*LEARNED} <= state.keys() or len(state["wanted"]) != self.count:
            return False
        weights = {name.removeprefix("net."): tensor for name, tensor in state.items() if name.startswith("net.")}
        if {name: tensor.shape for name, tensor in weights.items()} != {
            name: tensor.shape for name, tensor in net.state_dict().items()
        }:
            return False
        net.load_state_dict(weights)
        self.net = net.eval().requires_grad_(False)
        for name in LEARNED:
            setattr(self, name, state[name].clone())
        return True

    def rows(self, images: Tensor) -> Tensor:
        """(n, c, h, w) in [0, 1] -> (n, 64), each feature standardised."""
        return (self._raw(images) - self.mean) / self.scale

    def predicted(self, images: Tensor) -> Tensor:
        """(n, k) logits of the frozen network."""
        return torch.cat([self.net(part.to(self.device)).cpu() for part in images.split(CHUNK)])

    def _raw(self, images: Tensor) -> Tensor:
        return torch.cat([self.net.features(part.to(self.device)).cpu() for part in images.split(CHUNK)])

    def some(self, count: int) -> Tensor:
        """`count` rows of the floor, spaced over it."""
        return self.floor[evenly(len(self.floor), count)]

    def quick(self, found: Tensor) -> dict[str, float]:
        """FD and KID of `found` (n, c, h, w) for any n up to `count`, with the floor of as many real images."""
        count = min(len(found), self.count)
        if count < FEWEST:
            return {}
        rows, floor = self.rows(found[:count]), self.some(count)
        facts: dict[str, float] = {"fidelity_images": float(count)}
        for name, measure in (("fd", frechet), ("kid", kernel_distance)):
            facts |= {name: measure(rows, self.wanted), f"{name}_floor": measure(floor, self.wanted)}
        return facts

    def report(self, found: Tensor) -> dict[str, float]:
        """Distances of `found` (count, c, h, w), with intervals, floors and the distances of two trivial samplers."""
        if len(found) < FEWEST:
            return {}
        rows = self.rows(found)
        facts: dict[str, float] = {"fidelity_images": float(len(found))}
        low, high = interval(frechet, rows, self.wanted)
        facts |= {"fd": frechet(rows, self.wanted), "fd_low": low, "fd_high": high}
        low, high = kernel_interval(rows, self.wanted)
        facts |= {"kid": kernel_distance(rows, self.wanted), "kid_low": low, "kid_high": high}
        facts |= {"precision": coverage(rows, self.wanted), "recall": coverage(self.wanted, rows)}
        facts |= dict(zip(TRIVIAL, self.trivial.tolist(), strict=True))
        return facts | {"copied": copied(found, self.known, self.usual)}


_MEASURES: WeakKeyDictionary[Columns, Fidelity] = WeakKeyDictionary()


def fidelity_of(train: Columns, validation: Columns, device: torch.device, data: DataSpec) -> Fidelity:
    """The measure of this dataset, made once for as long as `train` lives; its first making learns a network."""
    if train not in _MEASURES:
        _MEASURES[train] = Fidelity(train, validation, device, len(data.classes) if data.classes else None)
    return _MEASURES[train]


def sample_report(model: Family, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
    """Sample quality of a model that has a prior and decodes (HasPrior, Decodes): `Fidelity.report` of its samples."""
    measure = fidelity_of(train, validation, model.device, model.data)
    return measure.report(in_chunks(lambda count: decode_prior(model, count, context.generator), measure.count))


def decode_prior(model: Family, count: int, draws: torch.Generator) -> Tensor:
    """(count, c, h, w): samples of a model that has a prior and decodes; a conditional one decodes example labels."""
    noise = torch.randn(count, model.latent_dim, generator=draws, device=model.device)
    uniform = torch.rand(count, generator=draws, device=model.device)
    labels = [model.example_labels(count).to(model.device)] if takes_labels(model) else []
    return model.decode(model.draw(noise, uniform, *labels), *labels)


def in_chunks(sample: Callable[[int], Tensor], count: int) -> Tensor:
    """(count, c, h, w), on the host: images by `sample(n)`, at most CHUNK at a time."""
    return torch.cat([sample(min(CHUNK, count - start)).cpu() for start in range(0, count, CHUNK)])
