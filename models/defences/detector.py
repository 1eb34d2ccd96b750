"""Detectors of adversarial images: a score per image, and a threshold calibrated on clean images.

A detector is one class in `models/defences/detectors/`. It uses only the logits of the network that it protects.
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
        QUANTILE, gt=0.5, lt=1, description="Fraction of clean validation images below the threshold."
    )


class Detector(nn.Module, ABC):
    """Scores are higher for adversarial images. `data` describes the input images of the network."""

    name: ClassVar[str]
    summary: ClassVar[str]
    helper: ClassVar[tuple[type, ...]] = ()
    """Capabilities; its own model must have one of them. Empty: it needs no model."""
    needs_training: ClassVar[bool] = False
    """Must be trained on clean images and attacks before use."""
    passes: ClassVar[int]
    """Forward passes of the network per scored image."""
    attack_settings: ClassVar[dict[str, dict[str, Any]]] = {}
    """Attacks that it can be trained on, with their settings that differ from the defaults."""
    Config: ClassVar[type[Quantile]] = Quantile

    def __init__(self, config: Quantile, data: DataSpec):
        super().__init__()
        self.config, self.data = config, data
        self.register_buffer("clean", torch.full((), torch.nan))

    @abstractmethod
    def forward(self, network: Network, images: Tensor) -> Tensor:
        """Scores (b,) of images; `network` returns logits."""

    def adapt_to(self, line_art: bool) -> None:
        """Choose settings for line art, or else for photographs."""

    def fit(self, model: Family, network: Network, images: Tensor, seed: int) -> Iterator[tuple[int, int]]:
        """Train on clean images (n, c, h, w) and attacks on `model`. Yields (steps done, all steps)."""
        yield from ()

    @property
    def training_attacks(self) -> list[str]:
        """Names of the attacks that it is trained on."""
        return list(self.config.attacks) if self.needs_training else []

    def calibrate(self, scores: Tensor) -> None:
        """Set the threshold to the `quantile` of the finite scores (n,) of clean images; none of them: no threshold."""
        scores = scores[torch.isfinite(scores)].double()
        self.clean.fill_(float(scores.quantile(self.config.quantile)) if len(scores) else torch.nan)

    @property
    def threshold(self) -> float | None:
        """Scores above it count as adversarial; None before `calibrate`."""
        return None if bool(self.clean.isnan()) else float(self.clean)

    @property
    def unit(self) -> float:
        """The scale of the scores, by which attacks on the detector divide them."""
        return max(self.threshold or 0.0, 1e-6)
