"""Random augmentations of training images (b, c, h, w); each image gets its own random numbers from a generator."""

import torch
import torch.nn.functional as F
from torch import Tensor


def flip(images: Tensor, draws: torch.Generator) -> Tensor:
    """Mirrors each image left to right with probability 1/2."""
    mirrored = torch.rand(len(images), generator=draws, device=images.device) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def shift(images: Tensor, most: int, draws: torch.Generator) -> Tensor:
    """Shifts each image by up to `most` pixels in both directions; the gap is filled with the pixels of the border."""
    count, _, height, width = images.shape
    padded = F.pad(images, [most] * 4, mode="replicate")
    offsets = torch.randint(2 * most + 1, (2, count, 1), generator=draws, device=images.device)
    rows = torch.arange(height, device=images.device) + offsets[0]  # (b, h)
    columns = torch.arange(width, device=images.device) + offsets[1]  # (b, w)
    index = torch.arange(count, device=images.device)[:, None, None]
    return padded[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def shift_pair(images: Tensor, masks: Tensor, most: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """`shift` of images and of their masks (b, h, w) of class indices, equally."""
    both = shift(torch.cat([images, masks[:, None].to(images.dtype)], 1), most, draws)
    return both[:, :-1].contiguous(), both[:, -1].to(masks.dtype)


def flip_pair(images: Tensor, masks: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mirrors an image and its mask (b, h, w) left to right with probability 1/2."""
    mirrored = torch.rand(len(images), generator=draws, device=images.device) < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    return images, torch.where(mirrored[:, None, None], masks.flip(2), masks)


def colour_jitter(images: Tensor, most: float, draws: torch.Generator) -> Tensor:
    """Contrast, brightness and the balance of channels of each image in [0, 1], each varied by up to `most`."""
    count, channels = images.shape[:2]
    factors = 1 + most * (2 * torch.rand(count, 1 + channels, generator=draws, device=images.device) - 1)
    offsets = most * (torch.rand(count, 1, 1, 1, generator=draws, device=images.device) - 0.5)
    mean = images.mean((1, 2, 3), keepdim=True)
    contrast, balance = factors[:, :1, None, None], factors[:, 1:, None, None]
    return (((images - mean) * contrast + mean) * balance + offsets).clamp(0, 1)


def constant_borders(images: Tensor, wide: int) -> Tensor:
    """(b,): whether the frame of `wide` pixels of each image has one colour, up to 1/16."""
    frame = torch.ones(images.shape[2:], dtype=torch.bool, device=images.device)
    frame[wide:-wide, wide:-wide] = False
    pixels = images[:, :, frame]
    return (pixels.amax(2) - pixels.amin(2)).amax(1) <= 1 / 16


def jitter(images: Tensor, draws: torch.Generator, noise: float = 0.05) -> Tensor:
    """Shifts each image in [0, 1] by up to 1/16 of its side and adds Gaussian noise of standard deviation `noise`."""
    shifted = shift(images, max(1, min(images.shape[2:]) // 16), draws)
    return (shifted + noise * torch.randn(shifted.shape, generator=draws, device=shifted.device)).clamp(0, 1)


def elastic_warp(images: Tensor, draws: torch.Generator, strength: float = 1.0) -> Tensor:
    """Warps each image with a random affine map and a smooth random displacement field.

    At strength 1: rotation up to 0.2 rad, shear up to 0.3, scale up to exp(0.3) across and exp(0.15) down, shift up to
    1/20 of the side, displacement with a standard deviation of 0.04 of the side. Gaps are filled from the border.
    """
    count, device = len(images), images.device
    spread = torch.tensor([0.2, 0.3, 0.3, 0.15, 0.1, 0.1], device=device) * strength
    turn, lean, wide, high, right, down = ((torch.rand(count, 6, generator=draws, device=device) * 2 - 1) * spread).T
    wide, high = wide.exp(), high.exp()
    across = torch.stack([turn.cos() * wide, lean - turn.sin() * high, right], 1)
    along = torch.stack([turn.sin() * wide, turn.cos() * high, down], 1)
    grid = F.affine_grid(torch.stack([across, along], 1), images.shape, align_corners=False)
    field = 0.08 * strength * torch.randn(count, 2, 5, 5, generator=draws, device=device)
    grid = grid + F.interpolate(field, images.shape[2:], mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
