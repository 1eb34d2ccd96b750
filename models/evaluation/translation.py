"""Measures of a translation, with the trivial baselines that any trained network must beat."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from models.data import Columns
from models.evaluation.metrics import row_psnr

ROWS = 512
NUMBERS = 32_000_000  # in one column, however large its images


def colour_transfer(images: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Each channel of `images` shifted and scaled from the mean and spread of `source` to those of `target`."""
    over = (0, 2, 3)
    scale = target.std(over, keepdim=True) / source.std(over, keepdim=True).clamp_min(1e-6)
    moved = (images - source.mean(over, keepdim=True)) * scale + target.mean(over, keepdim=True)
    return moved.clamp(0, 1)


def colour_distance(one: Tensor, other: Tensor) -> float:
    """Between the values (n, c, h, w) of two sets of images, wherever they are: mean over channels of the Wasserstein-1
    distance of their distributions, in 256 steps of [0, 1].
    """
    found = []
    for values in zip(one.unbind(1), other.unbind(1), strict=True):
        shares = [torch.histc(each.float().cpu(), 256, 0, 1).double() / each.numel() for each in values]
        found.append(float((shares[0] - shares[1]).cumsum(0).abs().mean()))
    return sum(found) / len(found)


def nearest(images: Tensor, gallery: Tensor) -> Tensor:
    """For each image the index of the nearest row of `gallery` by pixels (L2)."""
    return torch.cdist(images.flatten(1), gallery.flatten(1)).argmin(1)


def in_batches(function: Callable[[Tensor], Tensor], images: Tensor, size: int = 16) -> Tensor:
    """`function` over `images`, `size` rows at a time."""
    return torch.cat([function(part) for part in images.split(size)])


def distances(found: Tensor, wanted: Tensor, name: str) -> dict[str, float]:
    """Mean absolute distance per pixel and PSNR of `found` from `wanted`, under keys that start with `name`."""
    return {f"{name}l1": float((found - wanted).abs().mean()), f"{name}psnr": float(row_psnr(found, wanted).mean())}


def evenly_spaced(columns: Columns, count: int = ROWS) -> dict[str, Tensor]:
    """At most `count` rows of each column, evenly spread over it: rows n of columns of one length belong together."""
    rows = {}
    for name, column in columns.columns.items():
        total, numbers = len(column), math.prod(column.shape[1:])
        few = max(1, min(count, total, NUMBERS // numbers))
        rows |= columns.rows(torch.linspace(0, total - 1, few, dtype=torch.float64).round().long(), [name])
    return rows


def baselines(inputs: Tensor, seen: dict[str, Tensor], source: str, target: str, paired: bool) -> dict[str, Tensor]:
    """What needs no learning: the input copied, the mean target, a global colour transfer; and, where training images
    come in pairs, the partner of the nearest one.
    """
    mean = seen[target].mean(0, keepdim=True).expand_as(inputs)
    found = {"copy": inputs, "mean": mean, "colour": colour_transfer(inputs, seen[source], seen[target])}
    return found | ({"nearest": seen[target][nearest(inputs, seen[source])]} if paired else {})


def evaluate_on_pairs(
    translate: Callable[[Tensor], Tensor], train: Columns, validation: Columns, source: str, target: str, paired: bool
) -> dict[str, float]:
    """L1 and PSNR on unseen pairs or twins, beside the same of what needs no learning."""
    seen, unseen = evenly_spaced(train), evenly_spaced(validation)
    inputs, targets = unseen[source], unseen[target]
    report = distances(in_batches(translate, inputs), targets, "")
    for name, images in baselines(inputs, seen, source, target, paired).items():
        report |= distances(images, targets, f"{name}_")
    return report


def mean_change(
    translate: Callable[[Tensor], Tensor], train: Columns, validation: Columns, source: str, target: str
) -> dict[str, float]:
    """How far a translation moves images, mean per pixel, beside how far a global colour transfer does."""
    seen, images = evenly_spaced(train), evenly_spaced(validation)[source]
    simple_way = colour_transfer(images, seen[source], seen[target])
    found = in_batches(translate, images)
    ways = {"moved_l1": found, "colour_moved_l1": simple_way}
    return {name: float((other - images).abs().mean()) for name, other in ways.items()}


def cycle_l1(there: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor], images: Tensor) -> float:
    """Mean distance per pixel of images (n, c, h, w) from what comes back of them."""
    return float((in_batches(lambda part: back(there(part)), images) - images).abs().mean())
