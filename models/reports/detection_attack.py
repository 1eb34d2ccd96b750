"""Attacks on object detectors: mean average precision on clean and attacked images."""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from models.attacks.criteria.classification import Criterion
from models.attacks.criteria.detection import GOALS
from models.capabilities import DetectsObjects
from models.evaluation.segmentation import hues
from models.family import Family
from models.nn.boxes import NONE, Precision, draw_boxes
from models.reports.core.dense_attack import DenseAttack, DenseParams, against


class DetectionAttackParams(DenseParams):
    """The ground truth is the boxes of the dataset."""

    attacks: list[Literal[*against(DetectsObjects)]] = Field(
        ["pgd", "apgd", "dag"], min_length=1, max_length=8, description="White-box attacks to run."
    )
    goal: Literal["vanish", "fabricate", "mislabel"] = Field(
        "vanish",
        description="vanish: objects are missed; fabricate: objects appear where there are none; mislabel: objects get "
        "a wrong class (only those that a box of the model overlaps with IoU 0.5 or more count).",
    )


class PrecisionTally:
    """Detections and objects, for average precision."""

    def __init__(self, names: tuple[str, ...], state: dict | None = None):
        self.precision = Precision(len(names))
        if state is not None:
            self.precision.rows, self.precision.objects = state["rows"], state["objects"]

    def add(self, predictions: Tensor, truth: Tensor) -> None:
        for table, boxes in zip(predictions, truth, strict=True):
            self.precision.add(table, boxes)

    def state(self) -> dict:
        return {"rows": self.precision.rows, "objects": self.precision.objects}

    def summary(self) -> dict[str, float]:
        hits = sum(row[2] for row in self.precision.rows)
        objects = sum(self.precision.objects)
        false = len(self.precision.rows) - hits
        return self.precision.summary() | {"found": hits / max(objects, 1), "false": false / max(objects, 1)}


class DetectionAttack(DenseAttack):
    """`found` counts detections that match an object, `false` those that match none, both divided by the objects."""

    name = "detection_attack"
    summary = (
        "Attacks an object detector: average precision on clean and attacked images, and under random perturbations."
    )
    needs = (DetectsObjects,)
    columns = ("images", "boxes")
    Params = DetectionAttackParams
    measure = "map50"

    def tally(self, model: Family, state: Any = None) -> PrecisionTally:
        return PrecisionTally(model.data.classes, state)

    def truth(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["boxes"]

    def criterion(self, truth: Tensor, params: DetectionAttackParams) -> Criterion:
        return GOALS[params.goal](truth, torch.full((len(truth),), NONE, device=truth.device))

    def draw_predictions(self, model: Family, images: Tensor, predictions: Tensor) -> Tensor:
        return draw_boxes(images, predictions, hues(len(model.data.classes)).to(images))
