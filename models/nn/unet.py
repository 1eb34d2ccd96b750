"""A U-Net for image restoration (Ronneberger et al. 2015)."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from models.nn.resnet import ResidualBlock


class UNet(nn.Module):
    """(b, before, h, w) -> (b, after, h, w), for any size: pads to a multiple of the cell size and crops the result.

    Works at half resolution, with the pixels of each 2x2 cell as channels (Zhang et al. 2018, FFDNet), 4 times cheaper.
    """

    def __init__(self, before: int, after: int, width: int, levels: int):
        super().__init__()
        widths = [width * 2**level for level in range(levels + 1)]
        self.cell = 2 ** (levels + 1)
        self.enter = nn.Conv2d(4 * before, width, 3, 1, 1)
        self.before = nn.ModuleList([ResidualBlock(channels) for channels in widths[:-1]])
        self.down = nn.ModuleList([nn.Conv2d(fine, coarse, 3, 2, 1) for fine, coarse in pairwise(widths)])
        self.bottom = ResidualBlock(widths[-1])
        self.up = nn.ModuleList([nn.Conv2d(coarse, 4 * fine, 1) for fine, coarse in pairwise(widths)])
        self.after = nn.ModuleList([ResidualBlock(channels) for channels in widths[:-1]])
        self.leave = nn.Sequential(nn.SiLU(), nn.Conv2d(width, 4 * after, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        padding = (0, -width % self.cell, 0, -height % self.cell)
        maps = self.enter(F.pixel_unshuffle(F.pad(images, padding, mode="replicate"), 2))
        skips = []
        for before, down in zip(self.before, self.down, strict=True):
            skips.append(before(maps))
            maps = down(skips[-1])
        maps = self.bottom(maps)
        for level in reversed(range(len(skips))):
            maps = self.after[level](F.pixel_shuffle(self.up[level](maps), 2) + skips[level])
        return F.pixel_shuffle(self.leave(maps), 2)[:, :, :height, :width]
