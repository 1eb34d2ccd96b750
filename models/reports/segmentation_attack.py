"""Segmenters under attack: mean IoU before and after."""

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
    """An image counts as fooled when 99 % of its pixels are wrong; the measures count every pixel."""

    attacks: list[Literal[*against(Segments)]] = Field(
        ["pgd", "segpgd", "cospgd", "dag"], min_length=1, max_length=8, description="Attacks that see gradients."
    )


class Confusion:
    """Pixels by true and guessed class."""

    def __init__(self, names: tuple[str, ...], kept: list | None = None):
        self.names = names
        self.table = torch.zeros(len(names), len(names), dtype=torch.int64) if kept is None else torch.tensor(kept)

    def add(self, seen: Tensor, truth: Tensor) -> None:
        self.table += confusion(seen, truth, len(self.names)).cpu()

    def state(self) -> list:
        return self.table.tolist()

    def summary(self) -> dict[str, float]:
        by_class = ious(self.table)
        found = {"miou": float(by_class.nanmean().nan_to_num()), "pixel_accuracy": pixel_accuracy(self.table)}
        named = zip(self.names[:20], by_class.tolist(), strict=False)
        return found | {f"iou:{name}": value for name, value in named if value == value}


class SegmentationAttack(DenseAttack):
    """Mean IoU over all images together, as segmenters are usually compared; per-class IoU beside it."""

    name = "segmentation_attack"
    summary = "Attacks a segmenter over a dataset: mean IoU before and after, beside random and shuffled perturbations."
    needs = (Segments,)
    columns = ("images", "masks")
    Params = SegmentationAttackParams
    measure = "miou"

    def tally(self, model: Family, kept: Any = None) -> Confusion:
        return Confusion(model.data.classes, kept)

    def truth(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["masks"]

    def criterion(self, truth: Tensor, params: DenseParams) -> Criterion:
        return FractionOfPixels(truth)

    def drawn(self, model: Family, images: Tensor, seen: Tensor) -> Tensor:
        return overlay(images, seen, 0.7)
