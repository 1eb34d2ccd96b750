"""The position in a training, and the random numbers of a step."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class StepContext:
    """One point of a training. `generator` is seeded from (seed, step) and lives on the model's device."""

    images: int
    total: int
    step: int
    seed: int
    generator: torch.Generator
    quick: bool = False
    """Evaluate without metrics that need a network learned for them."""

    @property
    def progress(self) -> float:
        """Images done as a share of the total, in [0, 1]."""
        return min(1.0, self.images / max(1, self.total))
