"""Measures of masks (confusion, intersection over union, class fractions) and masks as pictures."""

import torch
from torch import Tensor

IGNORED = 255
"""Mask value of pixels that are not counted (void)."""


def confusion(guess: Tensor, truth: Tensor, count: int) -> Tensor:
    """(count, count) int64: pixels by true class (rows) and predicted class (columns), without IGNORED true pixels.

    `guess` and `truth` are integer tensors of one shape.
    """
    guess, truth = guess.flatten().long(), truth.flatten().long()
    counted = truth != IGNORED
    guess, truth = guess[counted], truth[counted]
    return torch.bincount(truth * count + guess, minlength=count * count).view(count, count)


def ious(table: Tensor) -> Tensor:
    """(K, K) -> (K,) float64: intersection over union of each class; NaN for a class that occurs nowhere."""
    table = table.double()
    intersection = table.diagonal()
    union = table.sum(0) + table.sum(1) - intersection
    return torch.where(union > 0, intersection / union.clamp_min(1), torch.nan)


def pixel_accuracy(table: Tensor) -> float:
    """Fraction of the pixels on the diagonal."""
    return float(table.diagonal().sum() / table.sum().clamp_min(1))


def shares(names: tuple[str, ...], mask: Tensor) -> dict[str, float]:
    """Fraction of the pixels of one mask (H, W) by class name."""
    counts = torch.bincount(mask.flatten().long(), minlength=len(names)).double()
    return dict(zip(names, (counts / counts.sum().clamp_min(1)).tolist(), strict=True))


def colours(count: int) -> Tensor:
    """(count, 3) in [0, 1]: the PASCAL VOC colour map (bits of the index distributed over the channels; 0 is black)."""
    index = torch.arange(count)
    values = torch.zeros(count, 3, dtype=torch.int64)
    for bit in range(8):
        for channel in range(3):
            if 3 * bit + channel < 8:
                values[:, channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
    return values / 255


def hues(count: int) -> Tensor:
    """(count, 3) in [0, 1]: a bright colour for each class; neighbouring classes differ by 0.618 of the hue circle."""
    hue = torch.arange(count)[:, None] * 0.618034 * 6 + torch.tensor([0.0, 4.0, 2.0])
    return ((hue % 6 - 3).abs() - 1).clamp(0, 1)


def overlay(images: Tensor, masks: Tensor, strength: float = 0.5) -> Tensor:
    """Images (N, C, H, W) with masks (N, H, W) overlaid in colour -> (N, 3, H, W); class 0 is not coloured."""
    paint = colours(256).to(images)[masks.long()].permute(0, 3, 1, 2)
    images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
    return torch.where((masks > 0)[:, None], (1 - strength) * images + strength * paint, images)
