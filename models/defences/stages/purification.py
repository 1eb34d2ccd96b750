"""An autoencoder in front of the model (Meng & Chen 2017): it gives back what it knows, and so not the perturbation."""

from pydantic import Field
from torch import Tensor

from models.attacks.core.rng import RowRNG
from models.capabilities import Decodes, Denoises, Encodes
from models.defences import stage as core


class Config(core.Config):
    model: str = Field(
        min_length=1,
        max_length=200,
        description="An autoencoder of this service, of the same image size: name or name@digest.",
        json_schema_extra={"format": "model"},
    )


class Purification(core.Defence):
    """Denoises with a model that can, else encodes and decodes; the gradient is exact."""

    name = "purify"
    summary = "Passes the image through an autoencoder."
    smooth = True
    helper = (Denoises, Encodes)
    Config = Config

    def apply_to(self, images: Tensor, rng: RowRNG) -> Tensor:
        return cleaned(self.model, images)


def cleaned(model: Denoises | Encodes | Decodes, images: Tensor) -> Tensor:
    """What an autoencoder makes of images."""
    return model.denoise(images) if isinstance(model, Denoises) else model.decode(model.encode(images)).clamp(0, 1)
