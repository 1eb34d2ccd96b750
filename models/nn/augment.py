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
