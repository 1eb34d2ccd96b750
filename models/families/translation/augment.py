"""Mirrored and shifted training images, and whether a dataset allows mirroring."""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.nn.augment import flip, shift

SIDE = 32
"""Images are compared at this side in pixels, if they are larger."""


def jittered(images: Tensor, mirror: bool, most: float, draws: torch.Generator) -> Tensor:
    """Images (B, C, H, W), a random half of them mirrored, each shifted by up to `most` of its side."""
    images = flip(images, draws) if mirror else images
    pixels = round(most * min(images.shape[2:]))
    return shift(images, pixels, draws) if pixels else images


def mirrors_alike(domains: dict[str, Tensor]) -> bool:
    """Whether mirrored training images (N, C, H, W) are like the images, so that a network should learn from both.

    With pairs: whether the nearest input predicts a target at least as well with the mirrored pairs among the others.
    It does not where the target is slanted. Without: whether in both domains images are as near to mirrored ones as to
    other ones. Digits are not.
    """
    small = {name: _small(images) for name, images in domains.items()}
    if "target" in small:
        inputs, targets = small["input"], small["target"]
        others, mirrored = _others(inputs), _distances(inputs, inputs.flip(3))
        either = torch.cat([targets, targets.flip(3)])[torch.cat([others, mirrored], 1).argmin(1)]
        return bool((either - targets).abs().mean() <= (targets[others.argmin(1)] - targets).abs().mean())
    nearest = [(_distances(images, images.flip(3)).amin(1), _others(images).amin(1)) for images in small.values()]
    return all(bool(mirrored.mean() <= other.mean()) for mirrored, other in nearest)


def _small(images: Tensor) -> Tensor:
    height, width = images.shape[2:]
    return F.adaptive_avg_pool2d(images, (min(SIDE, height), min(SIDE, width)))


def _distances(images: Tensor, others: Tensor) -> Tensor:
    """(N, C, H, W) and (M, C, H, W) -> (N, M) Euclidean distances."""
    return torch.cdist(images.flatten(1), others.flatten(1))


def _others(images: Tensor) -> Tensor:
    """The distances within a set; each image is infinitely far from itself."""
    return _distances(images, images).fill_diagonal_(torch.inf)
