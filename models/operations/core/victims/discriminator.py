"""Discriminators under attack: what they take for real they shall take for generated, and the other way round."""

from typing import Any

import torch
from torch import Tensor

from models.attacks.core.base import Attack
from models.capabilities import Classifies, Discriminates
from models.family import Family
from models.operations.core.base import Params, Rows
from models.operations.core.victims.classification import ClassVictim
from models.types import InputError

NAMES = ("generated", "real")


class JudgementVictim(ClassVictim):
    """As a classifier with two classes: half the log-odds speak for the one, half against it."""

    capability = Discriminates
    title = "judges"
    goals = ("realness",)
    settings = frozenset({"goal", "label"})
    fooled = "The discriminator is wrong about this image without an attack: it is returned unchanged."
    presumed = "No label was given: the discriminator's own judgement was taken for the truth."

    @classmethod
    def suits(cls, attack: type[Attack] | Attack) -> bool:
        return Classifies in attack.victims

    def outputs(self, model: Family, images: Tensor) -> Tensor:
        half = model.real_log_odds(images) / 2
        return torch.stack([-half, half], 1)

    def rows(self, model: Family, inputs: Tensor, params: Params) -> Rows:
        label, target = (_index(getattr(params, field), field) for field in ("label", "target"))
        if label == target != -1:
            raise InputError("target is the label itself", field="target", remedy="give the other, or none")
        return {"labels": torch.full((len(inputs),), label), "targets": torch.full((len(inputs),), target)}

    def describe(self, model: Family, seen: Tensor, found: Rows, row: int, brief: bool = False) -> dict[str, Any]:
        chances = seen.double().softmax(-1)
        index = int(chances.argmax())
        return {"label": NAMES[index], "index": index, "probability": float(chances[index])}


def _index(given: str | int | None, field: str) -> int:
    """The class meant; -1 without one."""
    if given is None:
        return -1
    if str(given) not in NAMES:
        raise InputError(f"there is no such class; allowed is {' or '.join(NAMES)}", field=field)
    return NAMES.index(str(given))
