"""What says whether an image is adversarial: a score of each image, and a threshold that was set on clean ones.

A detector is one class in a file of this folder. It asks a network for logits and knows nothing else of it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from models.defences import stage as core
from models.family import Family
from models.types import DataSpec

QUANTILE = 0.95
Network = Callable[[Tensor], Tensor]


class Quantile(core.Config):
    quantile: float = Field(
        QUANTILE, gt=0.5, lt=1, description="Share of clean validation images that are below the threshold."
    )


class Detector(nn.Module, ABC):
    """Scores are higher for adversarial images. `data` describes the images that the network takes."""

    name: ClassVar[str]
    summary: ClassVar[str]
    helper: ClassVar[tuple[type, ...]] = ()
    """Capabilities, one of which a model that it works with must have."""
    learns: ClassVar[bool] = False
    """Has to be shown clean images and attacks before it can judge."""
    passes: ClassVar[int]
    """How often it asks the network about an image that it judges."""
    lesson_settings: ClassVar[dict[str, dict[str, Any]]] = {}
    """Attacks that it can be shown, each with the settings that are not its defaults."""
    Config: ClassVar[type[Quantile]] = Quantile

    def __init__(self, config: Quantile, data: DataSpec):
        super().__init__()
        self.config, self.data = config, data
        self.register_buffer("clean", torch.full((), torch.nan))

    @abstractmethod
    def forward(self, network: Network, images: Tensor) -> Tensor:
        """(b,) scores; `network` gives logits."""

    def adapt_to(self, line_art: bool) -> None:
        """Adapt to the kind of images."""

    def learn(self, model: Family, network: Network, images: Tensor, seed: int) -> Iterator[tuple[int, int]]:
        """Learn from clean images (n, c, h, w) and attacks on `model`; yields (done, total) pieces of work."""
        yield from ()

    @property
    def lessons(self) -> list[str]:
        """Attacks that it has been, or will be, shown."""
        return list(self.config.attacks) if self.learns else []

    def calibrate(self, scores: Tensor) -> None:
        """Sets the threshold from the scores (n,) of clean images."""
        self.clean.fill_(float(scores.double().quantile(self.config.quantile)))

    @property
    def level(self) -> float | None:
        return None if bool(self.clean.isnan()) else float(self.clean)

    @property
    def unit(self) -> float:
        """A distance of scores that means something: attacks on the detector measure theirs by it."""
        return max(self.level or 0.0, 1e-6)
