"""Random changes of training images, drawn from a generator, image by image."""

import torch
import torch.nn.functional as F
from torch import Tensor


def flip(images: Tensor, draws: torch.Generator) -> Tensor:
    """Half of the images (b, c, h, w) mirrored left to right."""
    chosen = torch.rand(len(images), generator=draws, device=images.device) < 0.5
    return torch.where(chosen[:, None, None, None], images.flip(3), images)


def shift(images: Tensor, most: int, draws: torch.Generator) -> Tensor:
    """Each image moved by up to `most` pixels in both directions; its border is drawn out to fill the gap."""
    count, _, height, width = images.shape
    padded = F.pad(images, [most] * 4, mode="replicate")
    offsets = torch.randint(2 * most + 1, (2, count, 1), generator=draws, device=images.device)
    rows = torch.arange(height, device=images.device) + offsets[0]  # (b, h)
    columns = torch.arange(width, device=images.device) + offsets[1]  # (b, w)
    index = torch.arange(count, device=images.device)[:, None, None]
    return padded[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def jitter(images: Tensor, draws: torch.Generator, noise: float = 0.05) -> Tensor:
    """Each image (b, c, h, w) in [0, 1] shifted by up to 1/16 of its side, plus Gaussian noise of deviation `noise`."""
    shifted = shift(images, max(1, min(images.shape[2:]) // 16), draws)
    return (shifted + noise * torch.randn(shifted.shape, generator=draws, device=shifted.device)).clamp(0, 1)


def elastic_warp(images: Tensor, draws: torch.Generator, strength: float = 1.0) -> Tensor:
    """Each image (b, c, h, w) turned, leaned, stretched and moved a little, and bent along a smooth random field.

    At strength 1: turned by up to 0.2 rad, leaned by 0.3, scaled by up to exp(0.3) across and exp(0.15) along, moved by
    a twentieth of the side, bent with a deviation of 0.04 of it. The border is drawn out to fill the gaps.
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
