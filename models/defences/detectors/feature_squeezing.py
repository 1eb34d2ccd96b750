"""Feature squeezing (Xu et al. 2018): compares the predictions for an image and for simplified versions of it."""

import torch
from torch import Tensor, nn

from models.attacks.core.rng import RowRNG
from models.defences.detector import Detector, Network, Quantile
from models.defences.stages.simple import BitDepth, Median
from models.types import DataSpec


def squeezers() -> nn.ModuleList:
    """The squeezers of Xu et al.: 1, 4 and 5 bits, and a median filter of 2x2."""
    return nn.ModuleList([*(BitDepth(BitDepth.Config(bits=bits)) for bits in (1, 4, 5)), Median(Median.Config(size=2))])


class Squeezing(Detector):
    """score = max over squeezers s of ||softmax(z(x)) - softmax(z(s(x)))||_1.

    Squeezers: 1 bit for line art, 4 and 5 bits for other images, and a median filter of 2x2 for both.
    """

    name = "squeezing"
    summary = "Compares the predictions for the image and for squeezed versions of it (feature squeezing)."
    passes = 5

    def __init__(self, config: Quantile, data: DataSpec):
        super().__init__(config, data)
        self.squeezers = squeezers()
        self.register_buffer("used", torch.ones(len(self.squeezers)))

    def adapt_to(self, line_art: bool) -> None:
        self.used.copy_(torch.tensor([1.0, 0, 0, 1] if line_art else [0.0, 1, 1, 1]))

    def forward(self, network: Network, images: Tensor) -> Tensor:
        rng = RowRNG(torch.zeros(len(images), dtype=torch.int64, device=images.device))
        plain = network(images).softmax(1)
        distances = [(network(squeeze(images, rng)).softmax(1) - plain).abs().sum(1) for squeeze in self.squeezers]
        return (torch.stack(distances) * self.used[:, None]).amax(0)
