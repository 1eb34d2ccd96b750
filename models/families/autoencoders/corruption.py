"""Noise to remove: kinds of corruption of images in [0, 1], each with a strength for every image."""

import torch
import torch.nn.functional as F
from torch import Tensor


def masking(images: Tensor, strength: Tensor, draws: torch.Generator) -> Tensor:
    """Each number of an image (b, c, h, w) set to zero with probability `strength` (b, 1, 1, 1) (Vincent 2008)."""
    return images * (_uniform(images, draws) >= strength)


def gaussian(images: Tensor, strength: Tensor, draws: torch.Generator) -> Tensor:
    """Normal noise of standard deviation `strength`, clipped as an image file would clip it."""
    noise = torch.randn(images.shape, generator=draws, device=images.device)
    return (images + noise * strength).clamp(0, 1)


def salt_and_pepper(images: Tensor, strength: Tensor, draws: torch.Generator) -> Tensor:
    """Each number set to zero or to one with probability `strength` / 2 each."""
    uniform = _uniform(images, draws)
    return torch.where(uniform < strength, (uniform < strength / 2).to(images.dtype), images)


BY_NAME = {"masking": masking, "gaussian": gaussian, "salt_and_pepper": salt_and_pepper}


def corrupt(images: Tensor, noise: str, p: float, sigma: float, draws: torch.Generator, vary: bool) -> Tensor:
    """Images with noise of one kind, or with `mix` of a kind drawn for each image.

    With `vary` the strength of each image is drawn between nothing and the full one, which is `sigma` for gaussian and
    `p` for the other kinds.
    """
    shape, device = (len(images), 1, 1, 1), images.device
    scale = torch.rand(shape, generator=draws, device=device) if vary else torch.ones(shape, device=device)
    if noise != "mix":
        return BY_NAME[noise](images, scale * (sigma if noise == "gaussian" else p), draws)
    kind = torch.randint(len(BY_NAME), shape, generator=draws, device=device)
    found = masking(images, scale * p, draws)
    found = torch.where(kind == 1, gaussian(images, scale * sigma, draws), found)
    return torch.where(kind == 2, salt_and_pepper(images, scale * p, draws), found)


def _uniform(images: Tensor, draws: torch.Generator) -> Tensor:
    return torch.rand(images.shape, generator=draws, device=images.device)


def median_filter(images: Tensor) -> Tensor:
    """Each number of an image replaced by the median of its 3x3 neighbourhood: the classic to beat."""
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    windows = padded.unfold(2, 3, 1).unfold(3, 3, 1)  # (b, c, h, w, 3, 3)
    return windows.flatten(4).median(4).values
