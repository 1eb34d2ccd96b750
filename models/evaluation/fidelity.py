"""Sample quality: Frechet distance, kernel distance, precision and recall in the features of a frozen network.

The network is trained on the dataset itself (models/evaluation/feature_network.py). All distances depend on the number
of images, so each is given with its floor: the same distance between two sets of real images of that number.
"""

import math
from collections.abc import Callable
from functools import cached_property, partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from models.capabilities import takes_labels
from models.context import StepContext
from models.data import Columns
from models.evaluation.feature_network import FeatureNet, blank_net, blurred, feature_net
from models.evaluation.metrics import CHUNK, nearest, spaced_rows
from models.family import Family
from models.seeds import generator
from models.types import DataSpec

MAX_IMAGES = 2000
MIN_IMAGES = 4  # below, a covariance means nothing
ROUNDS = 40  # of the bootstrap
NEIGHBOURS = 3
CACHE_NAME = "features-3"  # in the cache of the dataset; the number grows when the contents change
CACHED = {
    "mean": "mean", "scale": "scale", "floor": "floor", "wanted": "reference", "usual": "copy_distance",
    "trivial": "baselines",
}  # fmt: skip
"""Names of tensors in the cache, and the attributes that hold them."""
BASELINES = (
    "fd_floor", "fd_blurred", "fd_repeated", "kid_floor", "kid_blurred", "kid_repeated", "precision_floor",
    "recall_floor", "fd_gaussian", "class_fd_floor", "class_fd_gaussian", "class_fd_halves", "confident_floor",
    "confident_gaussian", "class_entropy_floor",
)  # fmt: skip
"""Of real images (`floor`), the same blurred, one of them repeated, `gaussian_images`, and half of the classes. Those
of classes are zero without labels."""
SURE = 0.9
"""An image counts as recognised if its most likely class has at least this probability."""


def frechet(samples: Tensor, reference: Tensor) -> float:
    """|m - m'|^2 + tr(C + C' - 2 (C C')^1/2) for Gaussians fitted to rows (n, d) (Heusel et al. 2017, eq. 6)."""
    samples, reference = samples.double(), reference.double()
    first, second = samples.T.cov(correction=0), reference.T.cov(correction=0)
    values, vectors = torch.linalg.eigh(first)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp_min(0).sqrt().sum()
    shift = (samples.mean(0) - reference.mean(0)).square().sum()
    return max(0.0, float(shift + first.trace() + second.trace() - 2 * cross))


def kernel_distance(samples: Tensor, reference: Tensor) -> float:
    """Unbiased squared MMD with kernel (x.y / d + 1)^3, about 0 for equal distributions (Binkowski et al. 2018)."""
    tables = kernel(samples, samples), kernel(reference, reference)
    inside = [(table.sum() - table.trace()) / (len(table) * (len(table) - 1)) for table in tables]
    return float(inside[0] + inside[1] - 2 * kernel(samples, reference).mean())


def coverage(points: Tensor, reference: Tensor) -> float:
    """Share of `points` within the k-nearest-neighbour ball of a `reference` row (Kynkaanniemi et al. 2019, eq. 1).

    Precision: coverage(generated, real). Recall: coverage(real, generated).
    """
    count = min(NEIGHBOURS, len(reference) - 1)
    radii = nearest(reference, reference, count + 1)[0][:, -1]
    inside = [(torch.cdist(part, reference) <= radii).any(1) for part in points.split(CHUNK)]
    return float(torch.cat(inside).double().mean())


def interval(measure: Callable[[Tensor, Tensor], float], samples: Tensor, reference: Tensor) -> tuple[float, float]:
    """A 90 % bootstrap interval around the estimate, corrected for the bias of resampling."""
    draws = generator(0, "bootstrap")
    selections = [resample(draws, samples, reference) for _ in range(ROUNDS)]
    values = [measure(samples[first], reference[second]) for first, second in selections]
    return bootstrap_interval(measure(samples, reference), values)


def kernel_interval(samples: Tensor, reference: Tensor) -> tuple[float, float]:
    """`interval` of `kernel_distance`, with each kernel computed once: resampling changes the weights of its rows."""
    n, m = len(samples), len(reference)
    first, second, across = (
        kernel(*rows) for rows in ((samples, samples), (reference, reference), (samples, reference))
    )
    draws, values = generator(0, "bootstrap"), []
    for _ in range(ROUNDS):
        selection = zip(resample(draws, samples, reference), (n, m), strict=True)
        f, w = (torch.bincount(rows, minlength=count).double() for rows, count in selection)
        inside = [(x @ k @ x - x @ k.diagonal()) / (c * (c - 1)) for x, k, c in ((f, first, n), (w, second, m))]
        values.append(float(inside[0] + inside[1] - 2 * (f @ across @ w) / (n * m)))
    return bootstrap_interval(kernel_distance(samples, reference), values)


def kernel(samples: Tensor, reference: Tensor) -> Tensor:
    """(n, d), (m, d) -> (n, m): (x.y / d + 1)^3."""
    return (samples.double() @ reference.double().T / samples.shape[1] + 1) ** 3


def resample(draws: torch.Generator, *sets: Tensor) -> list[Tensor]:
    return [torch.randint(len(rows), (len(rows),), generator=draws) for rows in sets]


def bootstrap_interval(centre: float, values: list[float]) -> tuple[float, float]:
    ends = torch.tensor(values, dtype=torch.float64)
    low, high = (ends - ends.mean()).quantile(torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
    return centre + low, centre + high


def usual_distance(train: Tensor, validation: Tensor) -> Tensor:
    """(): the 5 % quantile of the pixel distance from a validation image to the nearest training image."""
    return nearest(validation.flatten(1), train.flatten(1))[0][:, 0].quantile(0.05)


def copied(samples: Tensor, train: Tensor, limit: Tensor) -> float:
    """Share of samples nearer to a training image than `limit`; 0.05 for real images and `usual_distance`."""
    return float((nearest(samples.flatten(1), train.flatten(1))[0][:, 0] < limit).double().mean())


def evenly(length: int, count: int) -> Tensor:
    """(count,) indices from the first to the last of `length` rows, which may be sorted by class."""
    return torch.linspace(0, length - 1, count).long()


def evenness(labels: Tensor, classes: int) -> float:
    """Entropy of the class frequencies as a share of its maximum, in [0, 1]; 0 for a single class."""
    shares = torch.bincount(labels, minlength=classes).double() / len(labels)
    return max(0.0, float(-torch.xlogy(shares, shares).sum() / math.log(classes)))


def gaussian_images(images: Tensor) -> Tensor:
    """As many samples (n, c, h, w) of a Gaussian with the mean and covariance of the pixels: the trivial generator."""
    rows = images.flatten(1)
    weights = (
        torch.randn(len(rows), len(rows), generator=generator(0, "gaussian images")) / max(1, len(rows) - 1) ** 0.5
    )
    mean = rows.mean(0)
    return (weights @ (rows - mean) + mean).clamp(0, 1).reshape(images.shape)


def held_out_rows(total: int) -> Tensor:
    """Every fourth training image, which the feature network does not learn from."""
    return torch.arange(0, total, 4 if total >= 4 else 1)


def compared_images(train: Columns, validation: Columns) -> int:
    """How many real images and samples `Fidelity` compares."""
    held_out = held_out_rows(len(train.columns["images"]))
    return min(MAX_IMAGES, len(held_out), len(validation.columns["images"]))


class Fidelity:
    """Measures samples against one dataset, with its frozen network, real images, and baselines that need no model.

    Every fourth training image is held out from the network's training, so that the floor compares two sets of images
    new to it. All but the images is learned once and stored in the cache of the dataset, if it has one.
    """

    def __init__(self, train: Columns, validation: Columns, device: torch.device, classes: int | None = None):
        total = len(train.columns["images"])
        held_out = held_out_rows(total)
        learned_from = torch.arange(total)[torch.arange(total) % 4 != 0] if total >= 4 else held_out
        self.labelled = classes is not None and classes > 1 and "labels" in train
        self.device = device
        self.count = compared_images(train, validation)
        self.train_images = train.rows(held_out[evenly(len(held_out), self.count)], ["images"])["images"].cpu()
        self.validation_images = torch.cat(list(spaced_rows(validation, limit=self.count))).cpu()
        classes = classes if self.labelled else None
        if not train.cache:
            self._learn(train, learned_from, classes)
        elif not self._cached(train, classes):
            with train.cache.learning(CACHE_NAME):
                if not self._cached(train, classes):  # nobody has learned it while this one waited
                    self._learn(train, learned_from, classes)
                    self._load(train.cache.put(CACHE_NAME, self._state()), self.net)  # all use what is in the cache

    def _cached(self, train: Columns, classes: int | None) -> bool:
        return self._load(train.cache.get(CACHE_NAME), blank_net(train, self.device, classes))

    def _learn(self, train: Columns, rows: Tensor, classes: int | None) -> None:
        self.net: FeatureNet = feature_net(train, rows, self.device, classes)
        # scaled on damaged images too: features that only react to damage would otherwise be magnified without bound
        noisy = self.train_images + 0.1 * torch.randn(self.train_images.shape, generator=generator(0, "noisy"))
        features = torch.cat([self._raw(images) for images in (self.train_images, blurred(self.train_images), noisy)])
        self.mean, self.scale = features.mean(0), features.std(0, correction=0).clamp_min(1e-4)
        self.floor, self.reference = self.rows(self.train_images), self.rows(self.validation_images)
        self.copy_distance = usual_distance(self.train_images, self.validation_images)
        self.baselines = self._baselines()

    def _baselines(self) -> Tensor:
        """The numbers of BASELINES."""
        if self.count < MIN_IMAGES:
            return torch.zeros(len(BASELINES), dtype=torch.float64)
        gaussian = gaussian_images(self.train_images)
        sets = self.floor, self.rows(blurred(self.train_images)), self.floor[:1].expand_as(self.floor)
        numbers = [measure(rows, self.reference) for measure in (frechet, kernel_distance) for rows in sets]
        numbers += [coverage(self.floor, self.reference), coverage(self.reference, self.floor)]
        numbers.append(frechet(self.rows(gaussian), self.reference))
        if self.labelled:
            floor, trivial = self.class_measures(self.train_images), self.class_measures(gaussian)
            logits = self.class_logits(self.train_images)
            half = logits[logits.argmax(1) < logits.shape[1] / 2]
            numbers += [floor["class_fd"], trivial["class_fd"], self._class_distance(half)]
            numbers += [floor["confident"], trivial["confident"], self.class_entropy_floor(self.count)]
        return torch.tensor(numbers + [0.0] * (len(BASELINES) - len(numbers)), dtype=torch.float64)

    def class_measures(self, samples: Tensor) -> dict[str, float]:
        """From the logits of the classes, which blur and noise hardly change: their Frechet distance to unseen images,
        the share of samples that are recognised, and the entropy of the classes; without labels nothing."""
        if not self.labelled or len(samples) < MIN_IMAGES:
            return {}
        logits = self.class_logits(samples)
        confident = (logits.softmax(1).amax(1) > SURE).double().mean()
        entropy = evenness(logits.argmax(1), logits.shape[1])
        return {"class_fd": self._class_distance(logits), "confident": float(confident), "class_entropy": entropy}

    @cached_property
    def unseen_logits(self) -> Tensor:
        """(count, k): those of the validation images."""
        return self.class_logits(self.validation_images)

    def class_entropy_floor(self, count: int) -> float:
        """The entropy of the classes of `count` unseen images: few images have fewer classes."""
        classes = self.unseen_logits[evenly(self.count, count)].argmax(1)
        return evenness(classes, self.unseen_logits.shape[1])

    def _class_distance(self, logits: Tensor) -> float:
        """FD of logits (n, k) to those of unseen images, in units of the latter's spread."""
        if len(logits) < MIN_IMAGES:
            return 0.0
        reference = self.unseen_logits
        mean, spread = reference.mean(0), reference.std(0).clamp_min(1e-4)
        return frechet((logits - mean) / spread, (reference - mean) / spread)

    def named_baselines(self) -> dict[str, float]:
        """Those of classes only with labels."""
        known = dict(zip(BASELINES, self.baselines.tolist(), strict=True))
        return {name: value for name, value in known.items() if self.labelled or not name.startswith(("class", "conf"))}

    def _state(self) -> dict[str, Tensor]:
        net = {f"net.{name}": tensor for name, tensor in self.net.state_dict().items()}
        return net | {name: getattr(self, attribute) for name, attribute in CACHED.items()}

    def _load(self, state: dict[str, Tensor] | None, net: FeatureNet) -> bool:
        """Take over the `state` from the cache. False if there is none or it does not fit these images."""
        if state is None or not CACHED.keys() <= state.keys() or len(state["wanted"]) != self.count:
            return False
        weights = {name.removeprefix("net."): tensor for name, tensor in state.items() if name.startswith("net.")}
        if {name: tensor.shape for name, tensor in weights.items()} != {
            name: tensor.shape for name, tensor in net.state_dict().items()
        }:
            return False
        net.load_state_dict(weights)
        self.net = net.eval().requires_grad_(False)
        for name, attribute in CACHED.items():
            setattr(self, attribute, state[name].clone())
        return True

    def rows(self, images: Tensor) -> Tensor:
        """(n, c, h, w) in [0, 1] -> (n, 64): standardised features."""
        return (self._raw(images) - self.mean) / self.scale

    def class_logits(self, images: Tensor) -> Tensor:
        """(n, c, h, w) in [0, 1] -> (n, k): logits of the frozen network."""
        return torch.cat([self.net(part.to(self.device)).cpu() for part in images.split(CHUNK)])

    def _raw(self, images: Tensor) -> Tensor:
        return torch.cat([self.net.features(part.to(self.device)).cpu() for part in images.split(CHUNK)])

    def floor_rows(self, count: int) -> Tensor:
        """`count` evenly spaced rows of the floor."""
        return self.floor[evenly(len(self.floor), count)]

    def distances(self, samples: Tensor) -> dict[str, float]:
        """FD and KID of the first `count` samples (n, c, h, w), each with the floor for as many real images."""
        count = min(len(samples), self.count)
        if count < MIN_IMAGES:
            return {}
        rows, floor = self.rows(samples[:count]), self.floor_rows(count)
        metrics: dict[str, float] = {"fidelity_images": float(count)}
        for name, measure in (("fd", frechet), ("kid", kernel_distance)):
            metrics |= {name: measure(rows, self.reference), f"{name}_floor": measure(floor, self.reference)}
        return metrics

    def report(self, samples: Tensor) -> dict[str, float]:
        """All metrics of samples (count, c, h, w): distances with intervals, floors and baselines; share of copies."""
        if len(samples) < MIN_IMAGES:
            return {}
        rows = self.rows(samples)
        metrics: dict[str, float] = {"fidelity_images": float(len(samples))}
        low, high = interval(frechet, rows, self.reference)
        metrics |= {"fd": frechet(rows, self.reference), "fd_low": low, "fd_high": high}
        low, high = kernel_interval(rows, self.reference)
        metrics |= {"kid": kernel_distance(rows, self.reference), "kid_low": low, "kid_high": high}
        metrics |= {"precision": coverage(rows, self.reference), "recall": coverage(self.reference, rows)}
        metrics |= self.class_measures(samples) | self.named_baselines()
        return metrics | {"copied": copied(samples, self.train_images, self.copy_distance)}


_MEASURES: WeakKeyDictionary[Columns, Fidelity] = WeakKeyDictionary()


def fidelity_of(train: Columns, validation: Columns, device: torch.device, data: DataSpec) -> Fidelity:
    """The Fidelity of this dataset, made at the first call (which may train its network) while `train` lives."""
    if train not in _MEASURES:
        _MEASURES[train] = Fidelity(train, validation, device, len(data.classes) if data.classes else None)
    return _MEASURES[train]


def sample_report(model: Family, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
    """`Fidelity.report` of samples from a model with a prior and a decoder (HasPrior, Decodes)."""
    if context.quick:
        return {}
    fidelity = fidelity_of(train, validation, model.device, model.data)
    return fidelity.report(in_chunks(lambda count: decode_prior(model, count, context.generator), fidelity.count))


def decode_prior(model: Family, count: int, draws: torch.Generator, sampler: str | None = None) -> Tensor:
    """(count, c, h, w): samples from a model with a prior and a decoder; from a conditional one for example labels.

    Their latents are from `sampler`, one of the model's `samplers`, or from its default.
    """
    noise = torch.randn(count, model.latent_dim, generator=draws, device=model.device)
    uniform = torch.rand(count, generator=draws, device=model.device)
    labels = [model.example_labels(count).to(model.device)] if takes_labels(model) else []
    draw = model.draw if sampler is None else partial(model.draw_from, sampler)
    return model.decode(draw(noise, uniform, *labels), *labels)


def in_chunks(sample: Callable[[int], Tensor], count: int) -> Tensor:
    """(count, c, h, w) on the host: images from `sample(n)` for at most CHUNK at a time."""
    return torch.cat([sample(min(CHUNK, count - start)).cpu() for start in range(0, count, CHUNK)])
