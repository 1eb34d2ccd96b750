"""Segmenters under attack: every pixel has a class that is right, and some of them are to be turned."""

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

OWN = -1
"""In `truth`: what the model says; in `aim`: any class but the right one."""


class PixelVictim(Victim):
    capability = Segments
    title = "segments"
    settings = frozenset({"truth", "pixels", "aim", "threshold"})
    fooled = "Enough pixels are as the attack wants them without an attack: the image is returned unchanged."
    presumed = "No truth was given: the model's own mask was taken for it."

    def outputs(self, model: Family, images: Tensor) -> Tensor:
        return model.pixel_logits(images)

    def rows(self, model: Family, inputs: Tensor, params: Params) -> Rows:
        size = model.data.shape[1:]
        truth = classes(model, params.truth, "truth")
        aim = classes(model, params.aim, "aim")
        chosen = area(model, params.pixels, "pixels")
        if params.target is not None:
            if aim is not None:
                raise InputError("give a target for all pixels or an aim for each, not both", field="target")
            aim = torch.full(size, class_index(model, params.target, "target"))
        counted = torch.ones(size, dtype=torch.bool) if chosen is None else chosen
        counted = counted if truth is None else counted & (truth != IGNORED)
        counted = counted if aim is None else counted & (aim != IGNORED)
        _check(truth, aim, counted, "target" if params.target is not None else "aim")
        planes = {"truth": torch.full(size, OWN) if truth is None else truth, "counted": counted}
        planes["aim"] = torch.full(size, OWN) if aim is None else aim
        found = {name: value.expand(len(inputs), *size) for name, value in planes.items()}
        return found | {"threshold": torch.full((len(inputs),), params.threshold)}

    def criterion(self, model: Family, rows: Rows, clean: Tensor, params: Params) -> Criterion:
        own = clean.nan_to_num(-torch.inf).argmax(1)
        labels = torch.where(rows["truth"] < 0, own, rows["truth"])
        labels = torch.where(rows["counted"], labels, IGNORED)
        aimed = params.target is not None or params.aim is not None
        targets = torch.where(rows["counted"], rows["aim"], 0) if aimed else None
        return FractionOfPixels(labels, targets, rows["threshold"], IGNORED)

    def seen(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(1).to(torch.uint8)

    def truth(self, criterion: Criterion) -> Rows:
        found = {"truth": criterion.labels}
        return found if criterion.targets is None else found | {"aim": criterion.targets}

    def describe(self, model: Family, seen: Tensor, found: Rows, row: int, brief: bool = False) -> dict[str, Any]:
        """Over the pixels that count: how many are right, how many as wanted, and the mean IoU."""
        truth, guess = found["truth"][row], seen.long()
        counted = truth != IGNORED
        right = float((guess == truth)[counted].double().mean())
        facts = {"pixel_accuracy": right}
        if "aim" in found:
            facts["pixels_on_target"] = float((guess == found["aim"][row])[counted].double().mean())
        by_class = ious(confusion(guess, truth, len(model.data.classes)))
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


def classes(model: Family, value: Tensor | None, field: str) -> Tensor | None:
    """A plane of class indices, 255 where a pixel does not count. Raises InputError for an index out of range."""
    indices = plane(model, value, field)
    if indices is None:
        return None
    count = len(model.data.classes)
    wrong = (indices >= count) & (indices != IGNORED)
    if bool(wrong.any()):
        raise InputError(
            f"{field} has the class {int(indices[wrong].max())}; allowed is 0 to {count - 1}, and 255 for pixels that"
            " do not count",
            field=field,
        )
    return indices


def _check(truth: Tensor | None, aim: Tensor | None, counted: Tensor, field: str) -> None:
    if not bool(counted.any()):
        raise InputError("no pixel is left that counts", field="pixels", remedy="choose more pixels, or all")
    if truth is not None and aim is not None and bool((truth == aim)[counted].all()):
        raise InputError("the pixels are of that class already", field=field, remedy="aim at another class")
