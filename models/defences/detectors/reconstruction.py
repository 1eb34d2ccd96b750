"""The detector of MagNet (Meng & Chen 2017): the reconstruction error of an autoencoder."""

from torch import Tensor, nn

from models.capabilities import Denoises, Encodes
from models.defences.detector import Detector, Network, Quantile
from models.defences.stages.purification import Config as Rebuilt
from models.defences.stages.purification import reconstructed
from models.types import DataSpec


class Rebuild(Quantile, Rebuilt):
    """The autoencoder and the quantile of the threshold."""


class Reconstruction(Detector):
    """score = root mean square of AE(x) - x."""

    name = "reconstruction"
    summary = "Measures the reconstruction error of an autoencoder."
    helper = (Denoises, Encodes)
    Config = Rebuild
    passes = 0

    def __init__(self, config: Rebuild, data: DataSpec, model: nn.Module):
        super().__init__(config, data)
        self.model = model

    def forward(self, network: Network, images: Tensor) -> Tensor:
        return (reconstructed(self.model, images) - images).square().flatten(1).mean(1).clamp_min(1e-12).sqrt()
