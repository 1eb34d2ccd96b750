"""State of `auto_remedy`: factors that its remedies change, and the best generator so far. Part of checkpoints."""

import copy

import torch
from torch import nn

from models.nn.ema import Ema

MIN_D_LR_FACTOR = 1 / 16
MAX_AUGMENT = 0.8
MAX_REWINDS = 3


class Remedies(nn.Module):
    """Buffers: `pace` is a factor on D's learning rate, `augment` a probability, `distance` the lowest FD (or -1),
    `returns` the number of rewinds. `best` is None where the weights of an earlier generator do not fit."""

    training_only = True

    def __init__(self, averaged: nn.Module, rewinds: bool):
        super().__init__()
        self.best = copy.deepcopy(averaged).requires_grad_(False) if rewinds else None
        for name, value in (("pace", 1.0), ("augment", 0.0), ("distance", -1.0), ("returns", 0.0)):
            self.register_buffer(name, torch.tensor(value))
        self._values: dict[str, float] = {}

    def value(self, name: str) -> float:
        """A buffer as a number; read from the device once, then cached."""
        if name not in self._values:
            self._values[name] = float(getattr(self, name))
        return self._values[name]

    def change(self, name: str, value: float) -> None:
        getattr(self, name).fill_(value)
        self._values[name] = value

    def _load_from_state_dict(self, *args) -> None:
        super()._load_from_state_dict(*args)
        self._values = {}

    def remember(self, averaged: nn.Module, distance: float) -> None:
        """Keep a copy of the averaged generator if its FD is the lowest so far."""
        if self.best is not None and not 0 <= self.value("distance") <= distance:
            self.best.load_state_dict(averaged.state_dict())
            self.change("distance", distance)

    def slow_discriminator(self) -> str | None:
        """Halve D's learning rate, down to a sixteenth. None: it is there already."""
        factor = max(MIN_D_LR_FACTOR, self.value("pace") / 2)
        if factor == self.value("pace"):
            return None
        self.change("pace", factor)
        return f"The learning rate of the discriminator is now multiplied by {factor:g}."

    def augment_more(self) -> str | None:
        """Raise the probability of augmentation by 0.1, up to 0.8. None: it is there already."""
        augment = min(MAX_AUGMENT, self.value("augment") + 0.1)
        if augment <= self.value("augment"):
            return None
        self.change("augment", augment)
        return f"Inputs of the discriminator are now augmented with probability {augment:.1f}."

    def rewind(self, generator: nn.Module, ema: Ema) -> str | None:
        """Set the generator and its average to the best generator so far, at most three times. None: not possible."""
        if self.best is None or self.value("distance") < 0 or self.value("returns") >= MAX_REWINDS:
            return None
        for network in (generator, ema.module):
            network.load_state_dict(self.best.state_dict())
        self.change("returns", self.value("returns") + 1)
        return f"The generator was reset to its best state so far, with FD {self.value('distance'):.3g}."
