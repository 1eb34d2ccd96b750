"""Is an image adversarial? How far the answer moves when the image is squeezed, or how badly it can be rebuilt."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from models.attacks.draws import Draws
from models.capabilities import Denoises, Encodes
from models.defences import core
from models.defences.bit_depth import BitDepth
from models.defences.bit_depth import Config as Bits
from models.defences.median import Config as Window
from models.defences.median import Median
from models.defences.purification import Config as Rebuilt
from models.defences.purification import cleaned

QUANTILE = 0.95
Network = Callable[[Tensor], Tensor]


class Quantile(core.Config):
    quantile: float = Field(
        QUANTILE, gt=0.5, lt=1, description="Share of clean validation images that are below the threshold."
    )


class Rebuild(Quantile, Rebuilt):
    """The autoencoder, and the threshold."""


class Detector(nn.Module, ABC):
    """A score of each image, higher for adversarial ones, and the threshold that was set on clean images."""

    name: ClassVar[str]
    summary: ClassVar[str]
    helper: ClassVar[tuple[type, ...]] = ()
    """Capabilities, one of which a model that it works with must have."""
    Config: ClassVar[type[Quantile]] = Quantile

    def __init__(self, config: Quantile):
        super().__init__()
        self.config = config
        self.register_buffer("clean", torch.full((), torch.nan))

    @staticmethod
    def of(kind: str, settings: dict[str, Any], part: Any = None) -> "Detector":
        """The detector of this kind."""
        found = KINDS[kind]
        config = core.read_config(found, settings, "detector")
        return found(config, part.build()) if part else found(config)

    @abstractmethod
    def forward(self, network: Network, images: Tensor) -> Tensor:
        """(b,) scores; `network` gives logits."""

    def settle(self, line_art: bool) -> None:
        """Adapt to the kind of images."""

    def calibrate(self, scores: Tensor) -> None:
        """Sets the threshold from the scores (n,) of clean images."""
        self.clean.fill_(float(scores.double().quantile(self.config.quantile)))

    @property
    def level(self) -> float | None:
        return None if bool(self.clean.isnan()) else float(self.clean)


class Squeezing(Detector):
    """Feature squeezing (Xu et al. 2018): the largest l1 distance of the softmax before and after a squeezer.

    Line art is squeezed to 1 bit, other images to 4 and 5; all by a median of 2x2.
    """

    name = "squeezing"
    summary = "Compares the answers to the image and to squeezed versions of it (feature squeezing)."

    def __init__(self, config: Quantile):
        super().__init__(config)
        self.squeezers = nn.ModuleList([*(BitDepth(Bits(bits=bits)) for bits in (1, 4, 5)), Median(Window(size=2))])
        self.register_buffer("used", torch.ones(len(self.squeezers)))

    def settle(self, line_art: bool) -> None:
        self.used.copy_(torch.tensor([1.0, 0, 0, 1] if line_art else [0.0, 1, 1, 1]))

    def forward(self, network: Network, images: Tensor) -> Tensor:
        draws = Draws(torch.zeros(len(images), dtype=torch.int64, device=images.device))
        plain = network(images).softmax(1)
        moved = [(network(squeeze(images, draws)).softmax(1) - plain).abs().sum(1) for squeeze in self.squeezers]
        return (torch.stack(moved) * self.used[:, None]).amax(0)


class Reconstruction(Detector):
    """MagNet's detector (Meng & Chen 2017): the root mean square of what an autoencoder does not give back."""

    name = "reconstruction"
    summary = "Looks at what an autoencoder does not give back of the image."
    helper = (Denoises, Encodes)
    Config = Rebuild

    def __init__(self, config: Rebuild, model: nn.Module):
        super().__init__(config)
        self.model = model

    def forward(self, network: Network, images: Tensor) -> Tensor:
        return (cleaned(self.model, images) - images).square().flatten(1).mean(1).clamp_min(1e-12).sqrt()


KINDS = {kind.name: kind for kind in (Reconstruction, Squeezing)}
