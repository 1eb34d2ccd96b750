"""Measures of a translation, with the trivial baselines that any trained network must beat."""

from collections.abc import Callable

import torch
from torch import Tensor

from models.data import Columns

ROWS = 512


def colour_transfer(images: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Each channel of `images` shifted and scaled from the mean and spread of `source` to those of `target`."""
    over = (0, 2, 3)
    scale = target.std(over, keepdim=True) / source.std(over, keepdim=True).clamp_min(1e-6)
    moved = (images - source.mean(over, keepdim=True)) * scale + target.mean(over, keepdim=True)
    return moved.clamp(0, 1)


def nearest(images: Tensor, gallery: Tensor) -> Tensor:
    """For each image the index of the nearest row of `gallery` by pixels (L2)."""
    return torch.cdist(images.flatten(1), gallery.flatten(1)).argmin(1)


def psnr(found: Tensor, wanted: Tensor) -> float:
    """Mean over images of 10 log10(1 / MSE), in dB, capped at 100."""
    errors = (found - wanted).square().flatten(1).mean(1).clamp_min(1e-10)
    return float((-10 * errors.log10()).mean())


def in_batches(function: Callable[[Tensor], Tensor], images: Tensor, size: int = 16) -> Tensor:
    """`function` over `images`, `size` rows at a time."""
    return torch.cat([function(part) for part in images.split(size)])


def distances(found: Tensor, wanted: Tensor, name: str) -> dict[str, float]:
    """Mean absolute distance per pixel and PSNR of `found` from `wanted`, under keys that start with `name`."""
    return {f"{name}l1": float((found - wanted).abs().mean()), f"{name}psnr": psnr(found, wanted)}


def paired_report(
    translate: Callable[[Tensor], Tensor], train: Columns, validation: Columns, source: str, target: str
) -> dict[str, float]:
    """L1 and PSNR on unseen pairs, beside: copied input, mean target, nearest training pair, colour transfer."""
    seen, unseen = train.head(ROWS), validation.head(ROWS)
    inputs, targets = unseen[source], unseen[target]
    report = distances(in_batches(translate, inputs), targets, "")
    baselines = {
        "copy": inputs,
        "mean": seen[target].mean(0, keepdim=True).expand_as(targets),
        "nearest": seen[target][nearest(inputs, seen[source])],
        "colour": colour_transfer(inputs, seen[source], seen[target]),
    }
    for name, images in baselines.items():
        report |= distances(images, targets, f"{name}_")
    return report
