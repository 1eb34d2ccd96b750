"""Gaussian noise, under which a model answers by vote: randomised smoothing (Cohen et al. 2019)."""

from pydantic import Field
from torch import Tensor

from models.attacks.core.rng import Draws
from models.defences import stage as core


class Config(core.Config):
    sigma: float = Field(0.25, gt=0, le=4, description="Standard deviation of the noise; pixels are in [0, 1].")


class Noise(core.Defence):
    """Pixels may leave [0, 1]: clipping would be a defence of its own, which no certificate speaks of."""

    name = "noise"
    summary = "Adds Gaussian noise, several times over, and lets the answers vote (randomised smoothing)."
    random = True
    smooth = True
    Config = Config

    def apply_to(self, images: Tensor, draws: Draws) -> Tensor:
        return images + self.config.sigma * draws.normal(tuple(images.shape[1:]), "defence")
