"""Regressors under attack: the estimate is moved up, down or away, or brought close to a number."""

import math
from typing import Any

import torch
from torch import Tensor

from models.attacks.core.base import Attack
from models.attacks.criteria.classification import Criterion
from models.attacks.criteria.regression import ReachesValue, Shifted
from models.capabilities import Classifies, Regresses
from models.family import Family
from models.operations.core.base import Params, Rows
from models.operations.core.victims.base import Victim
from models.types import ConfigError, InputError

WAYS = {"away": 0, "up": 1, "down": -1}
FAR, NEAR = 0.5, 0.1
"""Deviations of the training targets that count as a change, and as having come to a number."""


class NumberVictim(Victim):
    """`reach` counts in standard deviations of the training targets; numbers themselves are in their unit."""

    capability = Regresses
    title = "estimates a number"
    goals = tuple(WAYS)
    settings = frozenset({"goal", "reach"})
    fooled = "The estimate is there already: the image is returned unchanged."

    @classmethod
    def suits(cls, attack: type[Attack] | Attack) -> bool:
        """Whatever attacks classifiers by a margin alone, not by the order of their classes."""
        return Classifies in attack.victims and not attack.needs_class_scores and attack.access != "labels"

    def outputs(self, model: Family, images: Tensor) -> Tensor:
        return model.estimate(images)[:, None, None]  # a third axis: a number is no score of a class

    def rows(self, model: Family, inputs: Tensor, params: Params) -> Rows:
        if params.label is not None:
            raise ConfigError("this model estimates a number and knows no classes", field="label")
        if params.target is None:
            return {"way": torch.full((len(inputs),), float(WAYS[params.goal or "away"]))}
        if params.goal is not None:
            raise ConfigError("goal says which way to go; with a target it means nothing", field="goal")
        try:
            wanted = float(params.target)
        except ValueError:
            wanted = math.nan
        if not math.isfinite(wanted):
            raise InputError("the target of an estimate is a number", field="target", remedy="give one, such as 1.5")
        return {"wanted": torch.full((len(inputs),), wanted)}

    def criterion(self, model: Family, rows: Rows, clean: Tensor, params: Params) -> Criterion:
        origin = clean.flatten(1)[:, 0]
        unit = getattr(model, "deviation", torch.ones(())).to(origin)
        if "wanted" in rows:
            return ReachesValue(rows["wanted"].to(origin), origin, ((params.reach or NEAR) * unit).expand_as(origin))
        return Shifted(origin, ((params.reach or FAR) * unit).expand_as(origin), rows["way"].to(origin))

    def seen(self, outputs: Tensor) -> Tensor:
        return outputs.flatten(1)[:, 0]

    def truth(self, criterion: Criterion) -> Rows:
        return {name: value for name, value in vars(criterion).items() if isinstance(value, Tensor)}

    def describe(self, model: Family, seen: Tensor, found: Rows, row: int, brief: bool = False) -> dict[str, Any]:
        """The estimate, how far it is from that of the clean image, and how far is far (or near) enough."""
        facts = {"value": float(seen), "change": float(seen - found["origin"][row])}
        return facts if brief else facts | {"wanted": float(found["radius"][row])}

    def given(self, rows: Rows, row: int) -> bool:
        return True
