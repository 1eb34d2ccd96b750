"""Victims with many outputs per image: a small network that segments noisy scenes, and a detector in closed form."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.capabilities import DetectsObjects, Segments
from models.family import Family
from models.types import DataSpec

CLASSES = ("ground", "square", "disc")
SIZE = 16


def scenes(count: int, size: int = SIZE, seed: int = 0, tint: float = 0.16) -> tuple[Tensor, Tensor]:
    """8-bit images (N, 3, size, size) of a reddish square and a bluish disc in noise, and masks (N, size, size)."""
    draws = torch.Generator().manual_seed(seed)
    places = torch.rand(count, 6, generator=draws)
    grid = (torch.arange(size) + 0.5) / size
    rows, columns = grid[None, :, None], grid[None, None, :]
    masks = torch.zeros(count, size, size, dtype=torch.int64)
    top, left, side = (
        places[:, 0, None, None] * 0.6,
        places[:, 1, None, None] * 0.6,
        0.25 + 0.2 * places[:, 2, None, None],
    )
    masks[(rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)] = 1
    middle, across = 0.2 + 0.6 * places[:, 3, None, None], 0.2 + 0.6 * places[:, 4, None, None]
    radius = 0.12 + 0.12 * places[:, 5, None, None]
    masks[(rows - middle) ** 2 + (columns - across) ** 2 < radius**2] = 2
    colours = tint * torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, -0.5], [-0.5, 0.0, 1.0]])
    images = 0.45 + colours[masks].permute(0, 3, 1, 2) + 0.08 * torch.randn(count, 3, size, size, generator=draws)
    return (images.clamp(0, 1) * 255).round() / 255, masks


@cache
def fcn(size: int = SIZE, updates: int = 150, tint: float = 0.16) -> nn.Sequential:
    """Three convolutions, trained on scenes for seconds; frozen."""
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 3, 1)
        )
        optimiser = torch.optim.Adam(net.parameters(), lr=5e-3)
        images, masks = scenes(256, size, seed=1, tint=tint)
        for step in range(updates):
            rows = torch.arange(16) + 16 * step
            loss = F.cross_entropy(net(images[rows % 256] - 0.45), masks[rows % 256])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return net.eval().requires_grad_(False)


class Fields(Segments, Family):
    """The network as a family with classes."""

    name = "fields"

    def __init__(self, net: nn.Module | None = None, size: int = SIZE):
        super().__init__(None, DataSpec("segmentation", size, size, 3, CLASSES))
        self.net = net or fcn(size)

    def pixel_logits(self, images: Tensor) -> Tensor:
        return self.net(images - 0.45)

    def optimisers(self):
        raise NotImplementedError

    def step(self, batch, optimisers, context):
        raise NotImplementedError


class Blobs(DetectsObjects, Family):
    """Finds 4x4 blobs, red or blue: a logit is linear in the mean of one channel, a box is the 4x4 around its cell."""

    name = "blobs"

    def __init__(self, size: int = SIZE):
        super().__init__(None, DataSpec("detection", size, size, 3, ("red", "blue")))
        self.scale = nn.Parameter(torch.tensor(16.0))

    def detection_maps(self, images: Tensor) -> Tensor:
        means = F.avg_pool2d(images[:, [0, 2]], 4, 1)  # (b, 2, s - 3, s - 3)
        logits = (means - 0.5) * self.scale
        rows, columns = (torch.arange(side, device=images.device).float() for side in logits.shape[2:])
        top, left = rows[:, None].expand(logits.shape[2:]), columns[None].expand(logits.shape[2:])
        boxes = torch.stack([left, top, left + 4, top + 4]).expand(len(images), -1, -1, -1)
        return torch.cat([logits, boxes], 1)

    def optimisers(self):
        raise NotImplementedError

    def step(self, batch, optimisers, context):
        raise NotImplementedError


def blob_images() -> tuple[Tensor, Tensor]:
    """Three images with a red blob, a blue one, and both; and their boxes (3, 2, 5), -1 where there is none."""
    images = torch.full((3, 3, SIZE, SIZE), 51 / 255)
    none = [0.0, 0, 0, 0, -1]
    first, second = [[2, 3, 6, 7, 0], none], [[9, 8, 13, 12, 1], none]
    boxes = torch.tensor([first, second, [[1, 1, 5, 5, 0], [8, 9, 12, 13, 1]]])
    for image, rows in zip(images, boxes, strict=True):
        for left, top, right, bottom, kind in rows.long().tolist():
            if kind >= 0:
                image[2 * kind, top:bottom, left:right] = 153 / 255
    return images, boxes
