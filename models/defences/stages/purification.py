"""An autoencoder in front of the model (Meng & Chen 2017) reconstructs the image without the perturbation."""

from pydantic import Field
from torch import Tensor

from models.attacks.core.rng import RowRNG
from models.capabilities import Decodes, Denoises, Encodes
from models.defences import stage as core


class Config(core.Config):
    model: str = Field(
        min_length=1,
        max_length=200,
        description="Autoencoder for images of the same size: name or name@digest.",
        json_schema_extra={"format": "model"},
    )


class Purification(core.Defence):
    """Denoises if the model can, else encodes and decodes. The gradient is exact."""

    name = "purify"
    summary = "Reconstructs the image with an autoencoder."
    differentiable = True
    helper = (Denoises, Encodes)
    Config = Config

    def apply_to(self, images: Tensor, rng: RowRNG) -> Tensor:
        return reconstructed(self.model, images)


def reconstructed(model: Denoises | Encodes | Decodes, images: Tensor) -> Tensor:
    """The images denoised, or encoded and decoded, by an autoencoder."""
    return model.denoise(images) if isinstance(model, Denoises) else model.decode(model.encode(images)).clamp(0, 1)
