"""Discriminators under attack: real images are scored as generated, and generated ones as real."""

from typing import Any

import torch
from torch import Tensor

from models.attacks.core.base import Attack
from models.capabilities import Classifies, Discriminates
from models.family import Family
from models.operations.core.base import Params, Rows
from models.operations.core.victims.classification import ClassificationVictim
from models.types import InputError

NAMES = ("generated", "real")


class DiscriminatorVictim(ClassificationVictim):
    """A classifier with two classes, whose logits are minus and plus half the log-odds."""

    capability = Discriminates
    title = "discriminates"
    goals = ("realness",)
    settings = frozenset({"goal", "label"})
    fooled = "The discriminator is wrong about this image without an attack: it is returned unchanged."
    presumed = "No label was sent: the discriminator's own prediction was taken as the truth."

    @classmethod
    def suits(cls, attack: type[Attack] | Attack) -> bool:
        return Classifies in attack.victims

    def outputs(self, model: Family, images: Tensor) -> Tensor:
        half = model.real_log_odds(images) / 2
        return torch.stack([-half, half], 1)

    def rows(self, model: Family, inputs: Tensor, params: Params) -> Rows:
        label, target = (_index(getattr(params, field), field) for field in ("label", "target"))
        if label == target != -1:
            raise InputError(
                "target must differ from label.", field="target", remedy="Send the other, or remove target."
            )
        return {"labels": torch.full((len(inputs),), label), "targets": torch.full((len(inputs),), target)}

    def describe(self, model: Family, seen: Tensor, found: Rows, row: int, brief: bool = False) -> dict[str, Any]:
        probabilities = seen.double().softmax(-1)
        index = int(probabilities.argmax())
        return {"label": NAMES[index], "index": index, "probability": float(probabilities[index])}


def _index(label: str | int | None, field: str) -> int:
    """The index of a class; -1 without one."""
    if label is None:
        return -1
    if str(label) not in NAMES:
        raise InputError(f"{field} must be {' or '.join(NAMES)}; you sent {str(label)[:40]}.", field=field)
    return NAMES.index(str(label))
