"""Differentiable augmentation of what the discriminator sees, reals and fakes alike, so that G does not learn it.

Images are (b, c, h, w) in [-1, 1] here. Every draw comes from the generator given.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _uniform(images: Tensor, draws: torch.Generator, columns: int = 1) -> Tensor:
    """(b, columns) in [0, 1)."""
    return torch.rand(len(images), columns, generator=draws, device=images.device)


def _normal(images: Tensor, draws: torch.Generator) -> Tensor:
    return torch.randn(len(images), 1, generator=draws, device=images.device)


def _each(values: Tensor) -> Tensor:
    return values[:, :, None, None]


def brighten(images: Tensor, amount: Tensor) -> Tensor:
    """Add `amount` (b, 1)."""
    return images + _each(amount)


def saturate(images: Tensor, factor: Tensor) -> Tensor:
    """Scale the distance of each pixel to its grey."""
    return torch.lerp(images.mean(1, keepdim=True).expand_as(images), images, _each(factor))


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Scale the distance of each pixel to the image's mean."""
    return torch.lerp(images.mean((1, 2, 3), keepdim=True).expand_as(images), images, _each(factor))


def shift(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Move image i by whole pixels (rows[i], columns[i]) (b,); grey comes in from outside."""
    b, c, h, w = images.shape
    y = torch.arange(h, device=images.device)[None] - rows[:, None]  # (b, h): where each pixel comes from
    x = torch.arange(w, device=images.device)[None] - columns[:, None]
    inside = ((y >= 0) & (y < h))[:, None, :, None] & ((x >= 0) & (x < w))[:, None, None, :]
    moved = images.gather(2, y.clamp(0, h - 1)[:, None, :, None].expand(b, c, h, w))
    moved = moved.gather(3, x.clamp(0, w - 1)[:, None, None, :].expand(b, c, h, w))
    return moved * inside


def cutout(images: Tensor, top: Tensor, left: Tensor, size: tuple[int, int]) -> Tensor:
    """Grey out the box of `size` whose upper left corner is (top[i], left[i]) (b,), as far as it is inside."""
    y = torch.arange(images.shape[2], device=images.device)[None] - top[:, None]
    x = torch.arange(images.shape[3], device=images.device)[None] - left[:, None]
    boxed = ((y >= 0) & (y < size[0]))[:, None, :, None] & ((x >= 0) & (x < size[1]))[:, None, None, :]
    return images * ~boxed


def _whole(share: Tensor, low: int, high: int) -> Tensor:
    """(b,) whole numbers low..high from uniform `share` (b, 1)."""
    return (low + share[:, 0] * (high - low + 1)).floor().long()


def diff_augment(images: Tensor, draws: torch.Generator) -> Tensor:
    """Colour, translation by up to 1/8 and a cut-out of half the side (Zhao et al. 2020, DiffAugment)."""
    h, w = images.shape[2:]
    images = brighten(images, _uniform(images, draws) - 0.5)
    if images.shape[1] == 3:
        images = saturate(images, _uniform(images, draws) * 2)
    images = contrast(images, _uniform(images, draws) + 0.5)
    reach = round(h / 8), round(w / 8)
    moves = [_whole(_uniform(images, draws), -most, most) for most in reach]
    images = shift(images, *moves)
    box = h // 2, w // 2
    corners = [
        _whole(_uniform(images, draws), -(part // 2), side - part // 2 - 1)
        for part, side in zip(box, (h, w), strict=True)
    ]
    return cutout(images, *corners, box)


class AdaptiveAugment(nn.Module):
    """Each transformation happens with probability p, which rises while D is too sure of the training images.

    Karras et al. 2020 (ADA): the sign of D(x), averaged over 4 updates, is held at 0.6. p lives in a buffer.
    """

    target, every = 0.6, 4

    def __init__(self, ramp_images: int):
        super().__init__()
        self.ramp_images = ramp_images
        self.register_buffer("p", torch.zeros(()))
        self.register_buffer("signs", torch.zeros(2))  # their sum, their count

    def forward(self, images: Tensor, draws: torch.Generator) -> Tensor:
        images = self._geometry(images, draws)
        images = self._perhaps(images, brighten(images, 0.4 * _normal(images, draws)), draws)
        images = self._perhaps(images, contrast(images, (0.5 * _normal(images, draws)).exp2()), draws)
        if images.shape[1] == 3:
            images = self._perhaps(images, saturate(images, _normal(images, draws).exp2()), draws)
        return images

    @torch.no_grad()
    def observe(self, real_logits: Tensor, step: int) -> None:
        """Take D's logits of (augmented) training images into account; p moves after every fourth update."""
        signs = real_logits.detach().sign()
        self.signs += torch.stack([signs.sum(), torch.full_like(signs.sum(), signs.numel())])
        if (step + 1) % self.every == 0:
            excess = self.signs[0] / self.signs[1] - self.target
            self.p += excess.sign() * self.signs[1] / self.ramp_images
            self.p.clamp_(0, 1)
            self.signs.zero_()

    def _perhaps(self, images: Tensor, changed: Tensor, draws: torch.Generator) -> Tensor:
        return torch.where(_each(_uniform(images, draws) < self.p), changed, images)

    def _geometry(self, images: Tensor, draws: torch.Generator) -> Tensor:
        """Scale, rotation and translation in one resampling; the identity where all three stay away."""
        chosen = (_uniform(images, draws, 3) < self.p).float()  # (b, 3)
        scale = (0.2 * _normal(images, draws)).exp2() ** chosen[:, :1]
        angle = (_uniform(images, draws) * 2 - 1) * (math.pi / 6) * chosen[:, 1:2]
        move = (_uniform(images, draws, 2) * 2 - 1) * 0.25 * chosen[:, 2:]  # of the half side
        aspect = images.shape[3] / images.shape[2]
        cos, sin = angle.cos() * scale, angle.sin() * scale
        rows = torch.cat([cos, -sin / aspect, move[:, :1], sin * aspect, cos, move[:, 1:]], 1)
        grid = F.affine_grid(rows.reshape(-1, 2, 3), list(images.shape), align_corners=False)
        moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return torch.where(_each(chosen.amax(1, keepdim=True) > 0), moved, images)
