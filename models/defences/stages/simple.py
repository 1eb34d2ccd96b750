"""Three stages of a few lines each: bit depth reduction, median filter, Gaussian noise."""

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from models.attacks.core.rng import RowRNG
from models.defences import stage as core


class BitDepth(core.Defence):
    """Bit depth reduction (Xu et al. 2018): perturbations smaller than half a step are rounded away."""

    name = "bit_depth"
    summary = "Rounds every value of the image to fewer bits."

    class Config(core.Config):
        bits: int = Field(3, ge=1, le=8, description="Bits per value, of 8.")

    def apply_to(self, images: Tensor, rng: RowRNG) -> Tensor:
        top = 2**self.config.bits - 1
        return (images * top).round() / top


class Median(core.Defence):
    """Median filter (Xu et al. 2018): removes single changed pixels."""

    name = "median"
    summary = "Replaces every pixel by the median of its neighbourhood."
    differentiable = True

    class Config(core.Config):
        size: int = Field(3, ge=2, le=9, description="Side of the neighbourhood in pixels.")

    def apply_to(self, images: Tensor, rng: RowRNG) -> Tensor:
        size = self.config.size
        before, after = (size - 1) // 2, size // 2
        mode = "reflect" if after <= min(images.shape[2:]) - 1 else "replicate"
        padded = F.pad(images, (before, after, before, after), mode=mode)
        windows = padded.unfold(2, size, 1).unfold(3, size, 1).flatten(4)  # (b, c, h, w, size * size)
        return windows.median(-1).values


class Noise(core.Defence):
    """Gaussian noise, under which a model answers by vote: randomised smoothing (Cohen et al. 2019).

    Pixels may leave [0, 1]: the certificate holds for unclipped noise only.
    """

    name = "noise"
    summary = "Adds Gaussian noise several times and takes a vote (randomised smoothing)."
    random = True
    differentiable = True

    class Config(core.Config):
        sigma: float = Field(0.25, gt=0, le=4, description="Standard deviation of the noise; pixels lie in [0, 1].")

    def apply_to(self, images: Tensor, rng: RowRNG) -> Tensor:
        return images + self.config.sigma * rng.normal(tuple(images.shape[1:]), "defence")
