"""Attacks on segmenters: mean IoU on clean and attacked images."""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from models.attacks.criteria.classification import Criterion
from models.attacks.criteria.segmentation import FractionOfPixels
from models.capabilities import Segments
from models.evaluation.segmentation import confusion, ious, overlay, pixel_accuracy
from models.family import Family
from models.reports.core.dense_attack import DenseAttack, DenseParams, against


class SegmentationAttackParams(DenseParams):
    """An image counts as fooled when 99 % of its pixels are wrong; the measures count all pixels."""

    attacks: list[Literal[*against(Segments)]] = Field(
        ["pgd", "segpgd", "cospgd", "dag"], min_length=1, max_length=8, description="White-box attacks to run."
    )


class ConfusionTally:
    """Confusion matrix: pixels by true and predicted class."""

    def __init__(self, names: tuple[str, ...], state: list | None = None):
        self.names = names
        size = len(names)
        self.table = torch.zeros(size, size, dtype=torch.int64) if state is None else torch.tensor(state)

    def add(self, predictions: Tensor, truth: Tensor) -> None:
        self.table += confusion(predictions, truth, len(self.names)).cpu()

    def state(self) -> list:
        return self.table.tolist()

    def summary(self) -> dict[str, float]:
        by_class = ious(self.table)
        summary = {"miou": float(by_class.nanmean().nan_to_num()), "pixel_accuracy": pixel_accuracy(self.table)}
        first = zip(self.names[:20], by_class.tolist(), strict=False)
        return summary | {f"iou:{name}": value for name, value in first if value == value}  # no NaN


class SegmentationAttack(DenseAttack):
    """Mean IoU of the confusion matrix over all images, and the IoU of each class."""

    name = "segmentation_attack"
    summary = "Attacks a segmenter: mean IoU on clean and attacked images, and under random and shuffled perturbations."
    needs = (Segments,)
    columns = ("images", "masks")
    Params = SegmentationAttackParams
    measure = "miou"

    def tally(self, model: Family, state: Any = None) -> ConfusionTally:
        return ConfusionTally(model.data.classes, state)

    def truth(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["masks"]

    def criterion(self, truth: Tensor, params: DenseParams) -> Criterion:
        return FractionOfPixels(truth)

    def draw_predictions(self, model: Family, images: Tensor, predictions: Tensor) -> Tensor:
        return overlay(images, predictions, 0.7)
