"""Kinds of noise for images in [0, 1], with a strength for each image, and the median filter as a baseline."""

import torch
import torch.nn.functional as F
from torch import Tensor


def masking(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Sets numbers of images (b, c, h, w) to zero with probability `strength` (b, 1, 1, 1) (Vincent et al. 2008)."""
    return images * (_uniform(images, generator) >= strength)


def gaussian(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Adds Gaussian noise of standard deviation `strength` (b, 1, 1, 1), and clips to [0, 1]."""
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    return (images + noise * strength).clamp(0, 1)


def salt_and_pepper(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Sets each number to zero with probability `strength` / 2, and to one with the same probability."""
    uniform = _uniform(images, generator)
    return torch.where(uniform < strength, (uniform < strength / 2).to(images.dtype), images)


BY_NAME = {"masking": masking, "gaussian": gaussian, "salt_and_pepper": salt_and_pepper}


def corrupt(images: Tensor, noise: str, p: float, sigma: float, generator: torch.Generator, vary: bool) -> Tensor:
    """Images (b, c, h, w) with noise of one kind; under `mix` of a random kind for each image.

    The strength is `sigma` for gaussian and `p` for the other kinds; with `vary` each image has a random part of it.
    """
    shape, device = (len(images), 1, 1, 1), images.device
    scale = torch.rand(shape, generator=generator, device=device) if vary else torch.ones(shape, device=device)
    if noise != "mix":
        return BY_NAME[noise](images, scale * (sigma if noise == "gaussian" else p), generator)
    kind = torch.randint(len(BY_NAME), shape, generator=generator, device=device)
    noisy = masking(images, scale * p, generator)
    noisy = torch.where(kind == 1, gaussian(images, scale * sigma, generator), noisy)
    return torch.where(kind == 2, salt_and_pepper(images, scale * p, generator), noisy)


def _uniform(images: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(images.shape, generator=generator, device=images.device)


def median_filter(images: Tensor) -> Tensor:
    """The median of the 3x3 neighbourhood of each number: the baseline of denoising."""
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    windows = padded.unfold(2, 3, 1).unfold(3, 3, 1)  # (b, c, h, w, 3, 3)
    return windows.flatten(4).median(4).values
