"""Measures of a translation beside baselines that need no learning."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from models.data import Columns
from models.evaluation.metrics import row_psnr

ROWS = 512
MAX_VALUES = 32_000_000  # pixel values of one column


def colour_transfer(images: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Each channel of `images` shifted and scaled from the mean and spread of `source` to those of `target`."""
    over = (0, 2, 3)
    scale = target.std(over, keepdim=True) / source.std(over, keepdim=True).clamp_min(1e-6)
    transferred = (images - source.mean(over, keepdim=True)) * scale + target.mean(over, keepdim=True)
    return transferred.clamp(0, 1)


def colour_distance(one: Tensor, other: Tensor) -> float:
    """Mean over channels of the Wasserstein-1 distance between the pixel values of two sets of images (N, C, H, W).

    Computed from histograms with 256 bins on [0, 1].
    """
    channels = []
    for values in zip(one.unbind(1), other.unbind(1), strict=True):
        densities = [torch.histc(each.float().cpu(), 256, 0, 1).double() / each.numel() for each in values]
        channels.append(float((densities[0] - densities[1]).cumsum(0).abs().mean()))
    return sum(channels) / len(channels)


def nearest_by_pixels(images: Tensor, candidates: Tensor) -> Tensor:
    """For each image the index of the nearest row of `candidates` by pixels (L2)."""
    return torch.cdist(images.flatten(1), candidates.flatten(1)).argmin(1)


def in_batches(function: Callable[[Tensor], Tensor], images: Tensor, size: int = 16) -> Tensor:
    """`function` over `images`, `size` rows at a time."""
    return torch.cat([function(part) for part in images.split(size)])


def distances(images: Tensor, targets: Tensor, name: str) -> dict[str, float]:
    """L1 per pixel and mean PSNR in dB of `images` from `targets`, under keys that start with `name`."""
    l1, psnr = (images - targets).abs().mean(), row_psnr(images, targets).mean()
    return {f"{name}l1": float(l1), f"{name}psnr": float(psnr)}


def evenly_spaced(columns: Columns, count: int = ROWS) -> dict[str, Tensor]:
    """At most `count` evenly spaced rows of each column; rows n of columns of equal length belong together."""
    rows = {}
    for name, column in columns.columns.items():
        total, numbers = len(column), math.prod(column.shape[1:])
        rows_taken = max(1, min(count, total, MAX_VALUES // numbers))
        rows |= columns.rows(torch.linspace(0, total - 1, rows_taken, dtype=torch.float64).round().long(), [name])
    return rows


def baselines(inputs: Tensor, train: dict[str, Tensor], source: str, target: str, paired: bool) -> dict[str, Tensor]:
    """Translations without learning: a copy of the input, the mean target, a global colour transfer, and, with pairs,
    the target of the nearest training input.
    """
    mean = train[target].mean(0, keepdim=True).expand_as(inputs)
    outputs = {"copy": inputs, "mean": mean, "colour": colour_transfer(inputs, train[source], train[target])}
    return outputs | ({"nearest": train[target][nearest_by_pixels(inputs, train[source])]} if paired else {})


def evaluate_on_pairs(
    translate: Callable[[Tensor], Tensor], train: Columns, validation: Columns, source: str, target: str, paired: bool
) -> dict[str, float]:
    """L1 and PSNR on unseen pairs or twins, beside those of the baselines."""
    known, unseen = evenly_spaced(train), evenly_spaced(validation)
    inputs, targets = unseen[source], unseen[target]
    report = distances(in_batches(translate, inputs), targets, "")
    for name, images in baselines(inputs, known, source, target, paired).items():
        report |= distances(images, targets, f"{name}_")
    return report


def mean_change(
    translate: Callable[[Tensor], Tensor], train: Columns, validation: Columns, source: str, target: str
) -> dict[str, float]:
    """Mean L1 per pixel between images and their translations, beside that of a global colour transfer."""
    known, images = evenly_spaced(train), evenly_spaced(validation)[source]
    outputs = {
        "moved_l1": in_batches(translate, images),
        "colour_moved_l1": colour_transfer(images, known[source], known[target]),
    }
    return {name: float((output - images).abs().mean()) for name, output in outputs.items()}


def cycle_l1(forward: Callable[[Tensor], Tensor], backward: Callable[[Tensor], Tensor], images: Tensor) -> float:
    """Mean L1 per pixel between images (N, C, H, W) and backward(forward(images))."""
    return float((in_batches(lambda part: backward(forward(part)), images) - images).abs().mean())
