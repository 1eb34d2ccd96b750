"""A detector that looks at what an autoencoder makes of the image."""

from torch import Tensor, nn

from models.capabilities import Denoises, Encodes
from models.defences.detector import Detector, Network, Quantile
from models.defences.stages.purification import Config as Rebuilt
from models.defences.stages.purification import cleaned
from models.types import DataSpec


class Rebuild(Quantile, Rebuilt):
    """The autoencoder, and the threshold."""


class Reconstruction(Detector):
    """MagNet's detector (Meng & Chen 2017): the root mean square of what an autoencoder does not give back."""

    name = "reconstruction"
    summary = "Looks at what an autoencoder does not give back of the image."
    helper = (Denoises, Encodes)
    Config = Rebuild
    passes = 0

    def __init__(self, config: Rebuild, data: DataSpec, model: nn.Module):
        super().__init__(config, data)
        self.model = model

    def forward(self, network: Network, images: Tensor) -> Tensor:
        return (cleaned(self.model, images) - images).square().flatten(1).mean(1).clamp_min(1e-12).sqrt()
