"""Where a training is: what a step may know besides its batch."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class StepContext:
    """One point of a training run. `generator` is seeded from (seed, step) and lives on the model's device."""

    images: int
    total: int
    step: int
    seed: int
    generator: torch.Generator

    @property
    def progress(self) -> float:
        """Share of the run behind us, in [0, 1]."""
        return min(1.0, self.images / max(1, self.total))
