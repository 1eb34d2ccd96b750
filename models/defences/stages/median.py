"""The median of each pixel's neighbourhood (Xu et al. 2018): lone changed pixels disappear."""

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from models.attacks.core.rng import Draws
from models.defences import stage as core


class Config(core.Config):
    size: int = Field(3, ge=2, le=9, description="Side of the neighbourhood in pixels.")


class Median(core.Defence):
    name = "median"
    summary = "Replaces every pixel by the median around it."
    smooth = True
    Config = Config

    def apply_to(self, images: Tensor, draws: Draws) -> Tensor:
        size = self.config.size
        before, after = (size - 1) // 2, size // 2
        most = min(images.shape[2:]) - 1
        mode = "reflect" if after <= most else "replicate"
        padded = F.pad(images, (before, after, before, after), mode=mode)
        around = padded.unfold(2, size, 1).unfold(3, size, 1).flatten(4)  # (b, c, h, w, size * size)
        return around.median(-1).values
