"""Measures of refined images: accuracy of classifiers trained on them, and how well they are told from real ones."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.data import Columns
from models.evaluation.metrics import CHUNK, linear_softmax_accuracy, spaced_rows
from models.nn.encoders import ConvEncoder, MLPEncoder, default_body
from models.nn.fit import fit_small
from models.seeds import derive, generator, normal_rows

ROWS = 5000  # maximum images of each domain and split
UPDATES, BATCH, RATE = 600, 64, 2e-3
CURVE_POINTS = 6  # measurements of the accuracy while a classifier is trained
MAX_WEIGHTS = 2_000_000  # of a linear classifier on pixels; larger images are averaged to 16x16


@dataclass(frozen=True)
class Domain:
    """Images (n, c, h, w) of one domain and split, and their labels (n,) if there are any."""

    images: Tensor
    labels: Tensor | None

    @classmethod
    def of(cls, columns: Columns, name: str, limit: int = ROWS) -> "Domain":
        """At most `limit` evenly spaced rows of domain `name`."""
        column = f"{name}_labels"
        labels = torch.cat(list(spaced_rows(columns, column, limit))) if column in columns else None
        return cls(torch.cat(list(spaced_rows(columns, name, limit))), labels)

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "Domain":
        """The outputs of `function` for the images, rounded to 8 bits, with the same labels."""
        images = torch.cat([function(part) for part in self.images.split(CHUNK)])
        return Domain((images * 255).round() / 255, self.labels)

    def __add__(self, other: "Domain") -> "Domain":
        return Domain(torch.cat([self.images, other.images]), torch.cat([self.labels, other.labels]))


def image_noise(images: Tensor, width: int, seed: int = 0) -> Tensor:
    """(n, c, h, w) on the host -> (n, width): normal noise derived from `seed` and the 8-bit pixels of each image.

    An image gets the same noise in any batch, and different images get different noise.
    """
    pixels = (images * 255).round().to(torch.uint8).numpy()
    return normal_rows([derive(seed, "refine", hashlib.sha256(image.tobytes()).hexdigest()) for image in pixels], width)


def domain_labels(one: Domain, other: Domain) -> Domain:
    """The images of both, labelled 0 and 1; of the larger domain, evenly spaced rows as many as the smaller has."""
    count = min(len(one.images), len(other.images))
    parts = [each.images[torch.linspace(0, len(each.images) - 1, count).long()] for each in (one, other)]
    return Domain(torch.cat(parts), torch.arange(2).repeat_interleave(count))


def small_classifier(
    data: Domain,
    classes: int,
    seed: int,
    test: Domain | None = None,
    device: torch.device | str = "cpu",
    updates: int = UPDATES,
) -> tuple[torch.nn.Module, list[float]]:
    """A small network trained on `data` for `updates` batches, and its accuracies on `test` during the training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "small classifier"))
        shape = tuple(data.images.shape[1:])
        net = ConvEncoder(shape, classes, 16) if default_body(shape) == "conv" else MLPEncoder(shape, classes, (128,))
    net = net.to(device)
    draws, curve = generator(seed, "small classifier"), []

    def loss() -> Tensor:
        rows = torch.randint(len(data.images), (BATCH,), generator=draws)
        return F.cross_entropy(net(data.images[rows].to(device)), data.labels[rows].to(device))

    for update in fit_small(net.parameters(), loss, updates, RATE, weight_decay=0.01):
        if test is not None and update % (updates // CURVE_POINTS) == 0:
            curve.append(accuracy(net, test, device))
    return net.requires_grad_(False), curve


@torch.no_grad()
def accuracy(net: torch.nn.Module, data: Domain, device: torch.device | str = "cpu") -> float:
    """Fraction of the images that `net` classifies as their label."""
    predictions = torch.cat([net(part.to(device)).argmax(1).cpu() for part in data.images.split(CHUNK)])
    return float((predictions == data.labels).double().mean())


def linear_accuracy(data: Domain, test: Domain, classes: int) -> float:
    """Accuracy on `test` of a linear softmax on the pixels of `data`; large images are averaged to 16x16."""

    def pixels(images: Tensor) -> Tensor:
        many = images[0].numel() * classes > MAX_WEIGHTS or images[0].numel() > 3072
        return (F.adaptive_avg_pool2d(images, 16) if many else images).flatten(1)

    return linear_softmax_accuracy(pixels(data.images), data.labels, pixels(test.images), test.labels, classes)


def refinement_report(
    refine: Callable[[Tensor], Tensor], train: Columns, validation: Columns, classes: int | None, limit: int = 2000
) -> dict[str, float]:
    """Mean change of pixels by `refine`, and accuracies of linear classifiers on raw and on refined images.

    `domain_accuracy` is that of telling simulated from real images; 0.5 means that they cannot be told apart. With
    labels in both domains, `accuracy_linear` is that on unseen real images after training on simulated ones.
    """
    raw, real = Domain.of(train, "a", limit), Domain.of(train, "b", limit)
    raw_unseen, real_unseen = Domain.of(validation, "a", limit), Domain.of(validation, "b", limit)
    refined, refined_unseen = raw.mapped(refine), raw_unseen.mapped(refine)
    measures = {"moved_l1": float((refined_unseen.images - raw_unseen.images).abs().mean())}
    for name, learned, unseen in (("raw", raw, raw_unseen), ("refined", refined, refined_unseen)):
        pair = domain_labels(learned, real), domain_labels(unseen, real_unseen)
        measures[f"domain_accuracy_{name}"] = linear_accuracy(*pair, 2)
        if classes and learned.labels is not None and real_unseen.labels is not None:
            measures[f"accuracy_linear_{name}"] = linear_accuracy(learned, real_unseen, classes)
    return measures
