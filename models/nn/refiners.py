"""The two players of a refiner: what bends and repaints an image, and what looks at it patch by patch."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer, answering zero."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Pictured(torch.autograd.Function):
    """Values as the 8 bits of a picture show them. Gradients pass, but never further beyond black or white.

    Without it a background that is a little off black gives every refined image away.
    """

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return (values.clamp(0, 1) * 255).round() / 255

    @staticmethod
    def backward(ctx, slope: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        outwards = ((values < 0) & (slope > 0)) | ((values > 1) & (slope < 0))
        return slope.masked_fill(outwards, 0)


class Block(nn.Module):
    """x + conv(relu(conv(x))), then ReLU: the paper's residual block, without normalisation."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        return F.relu(features + self.layers(features))


class Warp(nn.Module):
    """Displaces pixels along a smooth field that the image decides: strokes bend and lean, which values cannot."""

    def __init__(self, channels: int, farthest: float):
        super().__init__()
        self.farthest = farthest
        self.body = nn.Sequential(
            nn.Conv2d(channels, 24, 3, 2, 1),
            nn.SiLU(),
            nn.Conv2d(24, 48, 3, 2, 1),
            nn.SiLU(),
            nn.Conv2d(48, 48, 3, 1, 1),
            nn.SiLU(),
            nn.Conv2d(48, 48, 3, 1, 1),
            nn.SiLU(),
        )
        self.last = zeroed(nn.Conv2d(48, 2, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(b, c, h, w) -> the same displaced, and the mean displacement in shares of the side."""
        coarse = self.farthest * torch.tanh(self.last(self.body(images * 2 - 1)))
        field = F.interpolate(coarse, images.shape[2:], mode="bicubic", align_corners=False)
        still = torch.eye(2, 3, device=images.device).expand(len(images), -1, -1)
        grid = F.affine_grid(still, images.shape, align_corners=False) + 2 * field.permute(0, 2, 3, 1)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False), coarse.abs().mean()


class RefinerNet(nn.Module):
    """Starts as the identity: its last convolutions are zero and its input is added, in place of a warm-up.

    Residual blocks work at half the resolution, beside what the full one shows.
    """

    def __init__(self, channels: int, width: int, blocks: int, farthest: float):
        super().__init__()
        thin = max(4, width // 2)
        self.warp = Warp(channels, farthest) if farthest else None
        self.first = nn.Sequential(nn.Conv2d(channels, thin, 3, 1, 1), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(thin, width, 3, 2, 1), nn.ReLU(), *(Block(width) for _ in range(blocks)))
        self.joined = nn.Sequential(nn.Conv2d(thin + width, thin, 3, 1, 1), nn.ReLU())
        self.last = zeroed(nn.Conv2d(thin, channels, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.measured(images)[0]

    def measured(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """R(x), not limited to [0, 1], and how far it is from x."""
        images, far = self.warp(images) if self.warp else (images, images.new_zeros(()))
        fine = self.first(images * 2 - 1)
        coarse = F.interpolate(self.body(fine), images.shape[2:])
        change = self.last(self.joined(torch.cat([fine, coarse], 1)))
        return images + change, change.abs().mean() + far


class LocalJudge(nn.Module):
    """The paper's discriminator: a map of logits, one for each patch (section 2.2), told the label where there is one.

    The label enters by projection (Miyato & Koyama 2018), in every patch.
    """

    def __init__(self, channels: int, classes: int = 0):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 96, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(96, 64, 3, 2, 1),
            nn.ReLU(),
            nn.MaxPool2d(3, 1, 1),
            nn.Conv2d(64, 32, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 1),
            nn.ReLU(),
        )
        self.last = nn.Conv2d(32, 1, 1)
        self.named = nn.Linear(classes, 32, bias=False) if classes else None

    def forward(self, images: Tensor, shares: Tensor | None = None) -> Tensor:
        """(b, c, h, w), and the shares (b, k) of labels -> (b, 1, rows, columns); without shares all are as common."""
        features = self.layers(images)
        logits = self.last(features)
        if self.named is None:
            return logits
        if shares is None:
            each = F.conv2d(features, self.named.weight.T[:, :, None, None])
            return logits + each.logsumexp(1, keepdim=True) - math.log(each.shape[1])
        return logits + (features * self.named(shares)[:, :, None, None]).sum(1, keepdim=True)
