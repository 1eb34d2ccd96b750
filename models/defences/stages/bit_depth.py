"""Fewer grey levels (Xu et al. 2018): small perturbations vanish in the rounding."""

from pydantic import Field
from torch import Tensor

from models.attacks.core.rng import Draws
from models.defences import stage as core


class Config(core.Config):
    bits: int = Field(3, ge=1, le=8, description="Bits left of the eight of each number.")


class BitDepth(core.Defence):
    name = "bit_depth"
    summary = "Rounds every number of the image to fewer bits."
    Config = Config

    def apply_to(self, images: Tensor, draws: Draws) -> Tensor:
        top = 2**self.config.bits - 1
        return (images * top).round() / top
