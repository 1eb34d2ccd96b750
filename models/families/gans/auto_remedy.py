"""What `auto_remedy` changes about a game, and the generator it can go back to. All of it travels in checkpoints."""

import copy

import torch
from torch import nn

from models.nn.ema import Ema

SLOWEST = 1 / 16
STRONGEST = 0.8
RETURNS = 3


class Remedies(nn.Module):
    """`pace` scales D's rate, `augment` is the probability of augmentation added; `best` is None for what grows."""

    training_only = True

    def __init__(self, averaged: nn.Module, rewinds: bool):
        super().__init__()
        self.best = copy.deepcopy(averaged).requires_grad_(False) if rewinds else None
        for name, value in (("pace", 1.0), ("augment", 0.0), ("distance", -1.0), ("returns", 0.0)):
            self.register_buffer(name, torch.tensor(value))
        self._known: dict[str, float] = {}

    def value(self, name: str) -> float:
        """A buffer as a number, read from the device once."""
        if name not in self._known:
            self._known[name] = float(getattr(self, name))
        return self._known[name]

    def change(self, name: str, value: float) -> None:
        getattr(self, name).fill_(value)
        self._known[name] = value

    def _load_from_state_dict(self, *given) -> None:
        super()._load_from_state_dict(*given)
        self._known = {}

    def remember(self, averaged: nn.Module, distance: float) -> None:
        """Keep the averaged generator if it is the best so far."""
        if self.best is not None and not 0 <= self.value("distance") <= distance:
            self.best.load_state_dict(averaged.state_dict())
            self.change("distance", distance)

    def slow_down(self) -> str | None:
        pace = max(SLOWEST, self.value("pace") / 2)
        if pace == self.value("pace"):
            return None
        self.change("pace", pace)
        return f"The discriminator now learns at {pace:g} of its rate."

    def augment_more(self) -> str | None:
        augment = min(STRONGEST, self.value("augment") + 0.1)
        if augment <= self.value("augment"):
            return None
        self.change("augment", augment)
        return f"What the discriminator sees is now augmented with probability {augment:.1f}."

    def rewind(self, generator: nn.Module, ema: Ema) -> str | None:
        """The generator and its average become the best so far, three times at most."""
        if self.best is None or self.value("distance") < 0 or self.value("returns") >= RETURNS:
            return None
        for player in (generator, ema.module):
            player.load_state_dict(self.best.state_dict())
        self.change("returns", self.value("returns") + 1)
        return f"The generator went back to its best, of FD {self.value('distance'):.3g}."
