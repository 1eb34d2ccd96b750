"""Detectors under attack: mean average precision before and after."""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from models.attacks.criteria.classification import Criterion
from models.attacks.criteria.detection import GOALS
from models.capabilities import DetectsObjects
from models.evaluation.segmentation import hues
from models.family import Family
from models.nn.boxes import NONE, Precision, draw
from models.reports.core.dense_attack import DenseAttack, DenseParams, against


class DetectionAttackParams(DenseParams):
    """The true boxes are those of the dataset."""

    attacks: list[Literal[*against(DetectsObjects)]] = Field(
        ["pgd", "apgd", "dag"], min_length=1, max_length=8, description="Attacks that see gradients."
    )
    goal: Literal["vanish", "fabricate", "mislabel"] = Field(
        "vanish",
        description="Objects are to go unseen, to appear where there are none, or to get a wrong class"
        " (but for those that no box of the model overlaps by half).",
    )


class Found:
    """Detections and the objects they are of."""

    def __init__(self, names: tuple[str, ...], kept: dict | None = None):
        self.precision = Precision(len(names))
        if kept is not None:
            self.precision.rows, self.precision.objects = kept["rows"], kept["objects"]

    def add(self, seen: Tensor, truth: Tensor) -> None:
        for table, boxes in zip(seen, truth, strict=True):
            self.precision.add(table, boxes)

    def state(self) -> dict:
        return {"rows": self.precision.rows, "objects": self.precision.objects}

    def summary(self) -> dict[str, float]:
        hits = sum(row[2] for row in self.precision.rows)
        objects = sum(self.precision.objects)
        false = len(self.precision.rows) - hits
        return self.precision.summary() | {"found": hits / max(objects, 1), "false": false / max(objects, 1)}


class DetectionAttack(DenseAttack):
    """`found` and `false` are detections on objects and off them, each as a share of the objects."""

    name = "detection_attack"
    summary = "Attacks a detector over a dataset: average precision before and after, beside random perturbations."
    needs = (DetectsObjects,)
    columns = ("images", "boxes")
    Params = DetectionAttackParams
    measure = "map50"

    def tally(self, model: Family, kept: Any = None) -> Found:
        return Found(model.data.classes, kept)

    def truth(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["boxes"]

    def criterion(self, truth: Tensor, params: DetectionAttackParams) -> Criterion:
        return GOALS[params.goal](truth, torch.full((len(truth),), NONE, device=truth.device))

    def drawn(self, model: Family, images: Tensor, seen: Tensor) -> Tensor:
        return draw(images, seen, hues(len(model.data.classes)).to(images))
