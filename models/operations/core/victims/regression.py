"""Regressors under attack: the prediction is moved up, down or away, or close to a target number."""

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

DIRECTIONS = {"away": 0, "up": 1, "down": -1}
MIN_SHIFT, MAX_GAP = 0.5, 0.1
"""Default `reach` without and with a target, in standard deviations of the training targets."""


class RegressionVictim(Victim):
    """`reach` is in standard deviations of the training targets; reported numbers are in the unit of the targets."""

    capability = Regresses
    title = "predicts a number"
    goals = tuple(DIRECTIONS)
    settings = frozenset({"goal", "reach"})
    fooled = "The goal is reached without an attack: the image is returned unchanged."

    @classmethod
    def suits(cls, attack: type[Attack] | Attack) -> bool:
        """Attacks on classifiers that use the margin alone, not the scores of the classes."""
        return Classifies in attack.victims and not attack.needs_class_scores and attack.access != "labels"

    def outputs(self, model: Family, images: Tensor) -> Tensor:
        return model.estimate(images)[:, None, None]  # a third axis, so that it is not taken for a class score

    def rows(self, model: Family, inputs: Tensor, params: Params) -> Rows:
        if params.label is not None:
            raise ConfigError("This model predicts a number: it takes no label.", field="label", remedy="Remove label.")
        if params.target is None:
            return {"way": torch.full((len(inputs),), float(DIRECTIONS[params.goal or "away"]))}
        if params.goal is not None:
            raise ConfigError("goal and target cannot be combined.", field="goal", remedy="Remove one of them.")
        try:
            target = float(params.target)
        except ValueError:
            target = math.nan
        if not math.isfinite(target):
            raise InputError("target must be a number for this model.", field="target", remedy="Send one, such as 1.5.")
        return {"targets": torch.full((len(inputs),), target)}

    def criterion(self, model: Family, rows: Rows, clean: Tensor, params: Params) -> Criterion:
        origin = clean.flatten(1)[:, 0]
        unit = getattr(model, "deviation", torch.ones(())).to(origin)
        if "targets" in rows:
            return ReachesValue(
                rows["targets"].to(origin), origin, ((params.reach or MAX_GAP) * unit).expand_as(origin)
            )
        return Shifted(origin, ((params.reach or MIN_SHIFT) * unit).expand_as(origin), rows["way"].to(origin))

    def seen(self, outputs: Tensor) -> Tensor:
        return outputs.flatten(1)[:, 0]

    def truth(self, criterion: Criterion) -> Rows:
        return {name: value for name, value in vars(criterion).items() if isinstance(value, Tensor)}

    def describe(self, model: Family, seen: Tensor, found: Rows, row: int, brief: bool = False) -> dict[str, Any]:
        """The prediction, its change from that of the clean image, and the change (or distance) required."""
        facts = {"value": float(seen), "change": float(seen - found["origin"][row])}
        return facts if brief else facts | {"wanted": float(found["radius"][row])}

    def given(self, rows: Rows, row: int) -> bool:
        return True
