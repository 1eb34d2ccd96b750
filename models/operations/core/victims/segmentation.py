"""Segmenters under attack: a fraction of the pixels must change class."""

from typing import Any

import torch
from torch import Tensor

from models.attacks.criteria.classification import Criterion
from models.attacks.criteria.segmentation import FractionOfPixels
from models.capabilities import Segments
from models.evaluation.segmentation import IGNORED, confusion, ious, shares
from models.family import Family
from models.operations.core.base import Params, Rows
from models.operations.core.victims.base import Victim, area, class_index, plane
from models.types import InputError

UNSET = -1
"""In `truth`: the model's prediction; in `aim`: any class but the true one."""


class SegmentationVictim(Victim):
    capability = Segments
    title = "segments"
    settings = frozenset({"truth", "pixels", "aim", "threshold"})
    fooled = "The goal is reached without an attack: the image is returned unchanged."
    presumed = "No truth was sent: the model's own mask was taken as the truth."

    def outputs(self, model: Family, images: Tensor) -> Tensor:
        return model.pixel_logits(images)

    def rows(self, model: Family, inputs: Tensor, params: Params) -> Rows:
        size = model.data.shape[1:]
        truth = class_plane(model, params.truth, "truth")
        aim = class_plane(model, params.aim, "aim")
        selected = area(model, params.pixels, "pixels")
        if params.target is not None:
            if aim is not None:
                raise InputError("target and aim cannot be combined.", field="target", remedy="Remove one of them.")
            aim = torch.full(size, class_index(model, params.target, "target"))
        counted = torch.ones(size, dtype=torch.bool) if selected is None else selected
        counted = counted if truth is None else counted & (truth != IGNORED)
        counted = counted if aim is None else counted & (aim != IGNORED)
        _check(truth, aim, counted, "target" if params.target is not None else "aim")
        planes = {"truth": torch.full(size, UNSET) if truth is None else truth, "counted": counted}
        planes["aim"] = torch.full(size, UNSET) if aim is None else aim
        columns = {name: value.expand(len(inputs), *size) for name, value in planes.items()}
        return columns | {"threshold": torch.full((len(inputs),), params.threshold)}

    def criterion(self, model: Family, rows: Rows, clean: Tensor, params: Params) -> Criterion:
        predicted = clean.nan_to_num(-torch.inf).argmax(1)
        labels = torch.where(rows["truth"] < 0, predicted, rows["truth"])
        labels = torch.where(rows["counted"], labels, IGNORED)
        targeted = params.target is not None or params.aim is not None
        targets = torch.where(rows["counted"], rows["aim"], 0) if targeted else None
        return FractionOfPixels(labels, targets, rows["threshold"], IGNORED)

    def seen(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(1).to(torch.uint8)

    def truth(self, criterion: Criterion) -> Rows:
        truth = {"truth": criterion.labels}
        return truth if criterion.targets is None else truth | {"aim": criterion.targets}

    def describe(self, model: Family, seen: Tensor, found: Rows, row: int, brief: bool = False) -> dict[str, Any]:
        """Over the counted pixels: accuracy, fraction on target, mean IoU."""
        truth, predicted = found["truth"][row], seen.long()
        counted = truth != IGNORED
        facts = {"pixel_accuracy": float((predicted == truth)[counted].double().mean())}
        if "aim" in found:
            facts["pixels_on_target"] = float((predicted == found["aim"][row])[counted].double().mean())
        by_class = ious(confusion(predicted, truth, len(model.data.classes)))
        facts["miou"] = float(by_class.nanmean())
        if brief:
            return facts
        names = zip(model.data.classes, by_class.tolist(), strict=True)
        return facts | {
            "shares": shares(model.data.classes, seen),
            "iou": {name: None if value != value else value for name, value in names},
        }

    def given(self, rows: Rows, row: int) -> bool:
        return bool((rows["truth"][row] >= 0).any())

    def pictures(self, model: Family, found: Rows) -> dict[str, Tensor]:
        return {"clean_mask": found["clean"], "adversarial_mask": found["adversarial"]}


def class_plane(model: Family, value: Tensor | None, field: str) -> Tensor | None:
    """A plane of class indices (H, W), 255 = not counted. Raises InputError for an index out of range."""
    indices = plane(model, value, field)
    if indices is None:
        return None
    count = len(model.data.classes)
    invalid = (indices >= count) & (indices != IGNORED)
    if bool(invalid.any()):
        raise InputError(
            f"{field} must have class indices from 0 to {count - 1}, or 255 for pixels that are not counted; you sent "
            f"{int(indices[invalid].max())}.",
            field=field,
        )
    return indices


def _check(truth: Tensor | None, aim: Tensor | None, counted: Tensor, field: str) -> None:
    if not bool(counted.any()):
        raise InputError("No pixel is counted.", field="pixels", remedy="Select more pixels, or all.")
    if truth is not None and aim is not None and bool((truth == aim)[counted].all()):
        raise InputError("All counted pixels already have the target class.", field=field, remedy="Send another class.")
