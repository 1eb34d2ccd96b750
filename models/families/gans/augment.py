"""Differentiable augmentation of D's inputs, reals and fakes alike, so that G does not learn the augmentation.

Images are (b, c, h, w) in [-1, 1]. All random numbers come from the `draws` passed in.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.training.ranks import total_over_ranks


def _uniform(images: Tensor, draws: torch.Generator, columns: int = 1) -> Tensor:
    """(b, columns) in [0, 1)."""
    return torch.rand(len(images), columns, generator=draws, device=images.device)


def _normal(images: Tensor, draws: torch.Generator) -> Tensor:
    return torch.randn(len(images), 1, generator=draws, device=images.device)


def _per_image(values: Tensor) -> Tensor:
    """(b, 1) -> (b, 1, 1, 1)."""
    return values[:, :, None, None]


def brighten(images: Tensor, amount: Tensor) -> Tensor:
    """Add `amount` (b, 1)."""
    return images + _per_image(amount)


def saturate(images: Tensor, factor: Tensor) -> Tensor:
    """Scale the difference of each pixel to its mean over channels by `factor` (b, 1)."""
    return torch.lerp(images.mean(1, keepdim=True).expand_as(images), images, _per_image(factor))


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Scale the difference of each pixel to the image's mean by `factor` (b, 1)."""
    return torch.lerp(images.mean((1, 2, 3), keepdim=True).expand_as(images), images, _per_image(factor))


def shift(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Translate image i by (rows[i], columns[i]) whole pixels (b,); grey (0) fills the border."""
    b, c, h, w = images.shape
    y = torch.arange(h, device=images.device)[None] - rows[:, None]  # (b, h): source of each pixel
    x = torch.arange(w, device=images.device)[None] - columns[:, None]
    inside = ((y >= 0) & (y < h))[:, None, :, None] & ((x >= 0) & (x < w))[:, None, None, :]
    shifted = images.gather(2, y.clamp(0, h - 1)[:, None, :, None].expand(b, c, h, w))
    shifted = shifted.gather(3, x.clamp(0, w - 1)[:, None, None, :].expand(b, c, h, w))
    return shifted * inside


def cutout(images: Tensor, top: Tensor, left: Tensor, size: tuple[int, int]) -> Tensor:
    """Set the box of `size` with its upper left corner at (top[i], left[i]) (b,) to grey (0) in image i."""
    y = torch.arange(images.shape[2], device=images.device)[None] - top[:, None]
    x = torch.arange(images.shape[3], device=images.device)[None] - left[:, None]
    boxed = ((y >= 0) & (y < size[0]))[:, None, :, None] & ((x >= 0) & (x < size[1]))[:, None, None, :]
    return images * ~boxed


def _integers(uniform: Tensor, low: int, high: int) -> Tensor:
    """(b,) integers low..high from uniform numbers (b, 1) in [0, 1)."""
    return (low + uniform[:, 0] * (high - low + 1)).floor().long()


def diff_augment(images: Tensor, draws: torch.Generator) -> Tensor:
    """Colour, translation by up to 1/8 of the side and a cutout of half the side (DiffAugment, Zhao et al. 2020)."""
    h, w = images.shape[2:]
    images = brighten(images, _uniform(images, draws) - 0.5)
    if images.shape[1] == 3:
        images = saturate(images, _uniform(images, draws) * 2)
    images = contrast(images, _uniform(images, draws) + 0.5)
    limits = round(h / 8), round(w / 8)
    images = shift(images, *[_integers(_uniform(images, draws), -limit, limit) for limit in limits])
    box = h // 2, w // 2
    corners = [
        _integers(_uniform(images, draws), -(part // 2), side - part // 2 - 1)
        for part, side in zip(box, (h, w), strict=True)
    ]
    return cutout(images, *corners, box)


class AdaptiveAugment(nn.Module):
    """Adaptive discriminator augmentation (ADA, Karras et al. 2020): each transformation is applied with probability p.

    r_t = E sign D(x) over training images (eq. 1); every 4 updates p rises if r_t > 0.6, else it falls, by the images
    shown over `ramp_images`. p is a buffer.
    """

    target, every = 0.6, 4

    def __init__(self, ramp_images: int):
        super().__init__()
        self.ramp_images = ramp_images
        self.register_buffer("p", torch.zeros(()))
        self.register_buffer("signs", torch.zeros(2))  # sum and count of the signs of D(x)

    def forward(self, images: Tensor, draws: torch.Generator) -> Tensor:
        images = self._geometry(images, draws)
        images = self._with_probability_p(images, brighten(images, 0.4 * _normal(images, draws)), draws)
        images = self._with_probability_p(images, contrast(images, (0.5 * _normal(images, draws)).exp2()), draws)
        if images.shape[1] == 3:
            images = self._with_probability_p(images, saturate(images, _normal(images, draws).exp2()), draws)
        return images

    @torch.no_grad()
    def observe(self, real_logits: Tensor, step: int) -> None:
        """Add D's logits of augmented training images; adjusts p after every fourth update."""
        signs = real_logits.detach().sign()
        self.signs += total_over_ranks(torch.stack([signs.sum(), torch.full_like(signs.sum(), signs.numel())]))
        if (step + 1) % self.every == 0:
            excess = self.signs[0] / self.signs[1] - self.target
            self.p += excess.sign() * self.signs[1] / self.ramp_images
            self.p.clamp_(0, 1)
            self.signs.zero_()

    def _with_probability_p(self, images: Tensor, transformed: Tensor, draws: torch.Generator) -> Tensor:
        return torch.where(_per_image(_uniform(images, draws) < self.p), transformed, images)

    def _geometry(self, images: Tensor, draws: torch.Generator) -> Tensor:
        """Scale, rotation and translation, each with probability p, in one resampling; exact where none applies."""
        applies = (_uniform(images, draws, 3) < self.p).float()  # (b, 3)
        scale = (0.2 * _normal(images, draws)).exp2() ** applies[:, :1]
        angle = (_uniform(images, draws) * 2 - 1) * (math.pi / 6) * applies[:, 1:2]
        offset = (_uniform(images, draws, 2) * 2 - 1) * 0.25 * applies[:, 2:]  # in half sides
        aspect = images.shape[3] / images.shape[2]
        cos, sin = angle.cos() * scale, angle.sin() * scale
        rows = torch.cat([cos, -sin / aspect, offset[:, :1], sin * aspect, cos, offset[:, 1:]], 1)
        grid = F.affine_grid(rows.reshape(-1, 2, 3), list(images.shape), align_corners=False)
        resampled = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return torch.where(_per_image(applies.amax(1, keepdim=True) > 0), resampled, images)
