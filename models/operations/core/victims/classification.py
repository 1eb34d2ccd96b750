"""Classifiers under attack: any class but the true one, or a target class."""

from typing import Any

import torch
from torch import Tensor

from models.attacks.core.logits import as_logits
from models.attacks.criteria.classification import Criterion, Misclassified, Targeted
from models.capabilities import Classifies
from models.family import Family
from models.operations.core.base import Params, Rows
from models.operations.core.victims.base import Victim, class_index
from models.types import InputError


class ClassificationVictim(Victim):
    capability = Classifies
    title = "classifies"
    settings = frozenset({"label"})
    fooled = "The model misclassifies this image without an attack: it is returned unchanged."
    presumed = "No label was sent: the model's own prediction was taken as the truth."

    def outputs(self, model: Family, images: Tensor) -> Tensor:
        return model.logits(images)

    def rows(self, model: Family, inputs: Tensor, params: Params) -> Rows:
        label = -1 if params.label is None else class_index(model, params.label, "label")
        target = -1 if params.target is None else class_index(model, params.target, "target")
        if label == target != -1:
            raise InputError(
                "target must differ from label.", field="target", remedy="Send another class, or remove target."
            )
        return {"labels": torch.full((len(inputs),), label), "targets": torch.full((len(inputs),), target)}

    def criterion(self, model: Family, rows: Rows, clean: Tensor, params: Params) -> Criterion:
        if params.target is not None:
            return Targeted(rows["targets"])
        predicted = clean.nan_to_num(-torch.inf).argmax(1)
        return Misclassified(torch.where(rows["labels"] < 0, predicted, rows["labels"]))

    def seen(self, outputs: Tensor) -> Tensor:
        return as_logits(outputs)

    def describe(self, model: Family, seen: Tensor, found: Rows, row: int, brief: bool = False) -> dict[str, Any]:
        """The most probable class; null if the model's output is not finite."""
        if not bool(torch.isfinite(seen).all()):
            return {"label": None, "index": None, "probability": None}
        probabilities, names = seen.double().softmax(-1), model.data.classes
        index = int(probabilities.argmax())
        return {
            "label": names[index] if names else str(index),
            "index": index,
            "probability": float(probabilities[index]),
        }

    def given(self, rows: Rows, row: int) -> bool:
        return bool(rows["labels"][row] >= 0)
