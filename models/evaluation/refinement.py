"""What refined images are good for: a classifier learns from them what real images show, and their labels stay true."""

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

ROWS = 5000  # of each domain and split, at most
UPDATES, BATCH, RATE = 600, 64, 2e-3
LOOKS = 6  # at the accuracy while a classifier learns
WIDE = 2_000_000  # weights of a linear classifier, above which pixels are averaged


@dataclass(frozen=True)
class Domain:
    """Images (n, c, h, w) of one domain and split, and their labels (n,) where there are any."""

    images: Tensor
    labels: Tensor | None

    @classmethod
    def of(cls, columns: Columns, name: str, limit: int = ROWS) -> "Domain":
        """At most `limit` rows of domain `name`, evenly spread."""
        labels = f"{name}_labels"
        found = torch.cat(list(spaced_rows(columns, labels, limit))) if labels in columns else None
        return cls(torch.cat(list(spaced_rows(columns, name, limit))), found)

    def made(self, function: Callable[[Tensor], Tensor]) -> "Domain":
        """What `function` makes of the images, in the 8 bits of a picture, with the same labels."""
        made = torch.cat([function(part) for part in self.images.split(CHUNK)])
        return Domain((made * 255).round() / 255, self.labels)

    def __add__(self, other: "Domain") -> "Domain":
        return Domain(torch.cat([self.images, other.images]), torch.cat([self.labels, other.labels]))


def image_noise(images: Tensor, width: int, seed: int = 0) -> Tensor:
    """(n, c, h, w) on the host -> (n, width): normal draws from `seed` and what each image shows, in 8 bits.

    An image is refined alike wherever it stands, and no two images of a dataset are refined by the same noise.
    """
    shown = (images * 255).round().to(torch.uint8).numpy()
    return normal_rows([derive(seed, "refine", hashlib.sha256(image.tobytes()).hexdigest()) for image in shown], width)


def domain_labels(one: Domain, other: Domain) -> Domain:
    """Both together, the first labelled 0 and the second 1; the larger is thinned to the size of the smaller."""
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
    """A small convolutional network trained on `data` for `updates` mini-batches, and its accuracy on the way."""
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
        if test is not None and update % (updates // LOOKS) == 0:
            curve.append(accuracy(net, test, device))
    return net.requires_grad_(False), curve


@torch.no_grad()
def accuracy(net: torch.nn.Module, data: Domain, device: torch.device | str = "cpu") -> float:
    """Share of the images that `net` takes for what their label says."""
    found = torch.cat([net(part.to(device)).argmax(1).cpu() for part in data.images.split(CHUNK)])
    return float((found == data.labels).double().mean())


def linear_accuracy(data: Domain, test: Domain, classes: int) -> float:
    """Accuracy on `test` of a linear softmax on the pixels of `data`, averaged to 16x16 where they are many."""

    def pixels(images: Tensor) -> Tensor:
        many = images[0].numel() * classes > WIDE or images[0].numel() > 3072
        return (F.adaptive_avg_pool2d(images, 16) if many else images).flatten(1)

    return linear_softmax_accuracy(pixels(data.images), data.labels, pixels(test.images), test.labels, classes)


def refinement_report(
    refine: Callable[[Tensor], Tensor], train: Columns, validation: Columns, classes: int | None, limit: int = 2000
) -> dict[str, float]:
    """The cheap part: how far images move, and what linear classifiers make of raw and of refined images.

    `domain_accuracy` tells simulated from real, .5 where they are alike. With labels of both domains, `accuracy_linear`
    is measured on unseen real images after learning from simulated ones.
    """
    raw, real = Domain.of(train, "a", limit), Domain.of(train, "b", limit)
    raw_unseen, real_unseen = Domain.of(validation, "a", limit), Domain.of(validation, "b", limit)
    refined, refined_unseen = raw.made(refine), raw_unseen.made(refine)
    found = {"moved_l1": float((refined_unseen.images - raw_unseen.images).abs().mean())}
    for name, seen, unseen in (("raw", raw, raw_unseen), ("refined", refined, refined_unseen)):
        pair = domain_labels(seen, real), domain_labels(unseen, real_unseen)
        found[f"domain_accuracy_{name}"] = linear_accuracy(*pair, 2)
        if classes and seen.labels is not None and real_unseen.labels is not None:
            found[f"accuracy_linear_{name}"] = linear_accuracy(seen, real_unseen, classes)
    return found
