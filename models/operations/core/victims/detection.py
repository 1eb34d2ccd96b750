"""Detectors under attack: objects vanish, get wrong names, or appear where there are none."""

from typing import Any

import torch
from torch import Tensor

from models.attacks.criteria.classification import Criterion
from models.attacks.criteria.detection import GOALS
from models.capabilities import DetectsObjects
from models.evaluation.segmentation import hues
from models.family import Family
from models.nn.boxes import LIMIT, NONE, Precision, detections, draw, matches, no_detection, without_padding
from models.operations.core.base import Params, Rows
from models.operations.core.victims.base import Victim, class_index
from models.types import InputError

FOUND = 0.5
"""Overlap from which a detection is of an object."""


class BoxVictim(Victim):
    capability = DetectsObjects
    title = "detects"
    goals = ("vanish", "fabricate", "mislabel")
    settings = frozenset({"boxes", "goal"})
    fooled = "The detections are as the attack wants them without an attack: the image is returned unchanged."
    left_out = "Objects that no box of the model overlaps by half have no name to change: they are left out."
    nothing_left = (
        "No box of the model overlaps any of these objects by half, so there is no name to change: the image is"
        " returned unchanged."
    )
    presumed = "No boxes were given: the model's own detections were taken for the truth."

    def outputs(self, model: Family, images: Tensor) -> Tensor:
        return model.detection_maps(images)

    def rows(self, model: Family, inputs: Tensor, params: Params) -> Rows:
        boxes = no_detection(torch.zeros(LIMIT, 6))[:, :5]
        given = [] if params.boxes is None else params.boxes
        if len(given) > LIMIT:
            raise InputError(f"at most {LIMIT} boxes may be given", field="boxes")
        for place, (label, *corners) in enumerate(given):
            boxes[place] = torch.tensor([*_inside(model, corners, place), class_index(model, label, "boxes")])
        target = NONE if params.target is None else class_index(model, params.target, "target")
        _check(params.goal or self.goals[0], target, boxes, bool(given))
        count = len(inputs)
        return {
            "boxes": boxes.expand(count, -1, -1),
            "given": torch.full((count,), params.boxes is not None),
            "targets": torch.full((count,), target),
        }

    def criterion(self, model: Family, rows: Rows, clean: Tensor, params: Params) -> Criterion:
        own = detections(clean)[..., :5]
        boxes = torch.where(rows["given"][:, None, None], rows["boxes"], own)
        return GOALS[params.goal or self.goals[0]](boxes, rows["targets"]).given_clean_outputs(clean)

    def seen(self, outputs: Tensor) -> Tensor:
        return detections(outputs)

    def truth(self, criterion: Criterion) -> Rows:
        unseen = getattr(criterion, "unseen", None)
        return {"truth": criterion.boxes} | ({} if unseen is None else {"unseen": unseen})

    def describe(self, model: Family, seen: Tensor, found: Rows, row: int, brief: bool = False) -> dict[str, Any]:
        """How many objects are found and left out, how many detections are of none, and the detections themselves."""
        rows, truth = without_padding(seen.cpu()), without_padding(found["truth"][row].cpu())
        hits = int(matches(rows, truth, [FOUND]).sum())
        precision = Precision(len(model.data.classes), [FOUND])
        precision.add(rows, truth)
        facts = {"objects": len(truth), "found": hits, "false": len(rows) - hits}
        facts["map50"] = precision.summary()["map50"]
        if brief:
            return facts
        left_out = {"left_out": int(found["unseen"][row].sum())} if "unseen" in found else {}
        return facts | left_out | {"detections": listed(model, seen)}

    def given(self, rows: Rows, row: int) -> bool:
        return bool(rows["given"][row])

    def pictures(self, model: Family, found: Rows) -> dict[str, Tensor]:
        paint = hues(len(model.data.classes))
        return {
            "clean_boxes": draw(found["inputs"], found["clean"], paint),
            "adversarial_boxes": draw(found["images"], found["adversarial"], paint),
        }


def listed(model: Family, table: Tensor) -> list[dict[str, Any]]:
    """Detections (M, 6) of one image for JSON, the surest first; a box is left, top, right, bottom in pixels."""
    names = model.data.classes
    return [
        {"label": names[int(kind)], "index": int(kind), "score": score, "box": [round(edge, 3) for edge in box]}
        for *box, kind, score in without_padding(table.cpu()).tolist()
    ]


def _inside(model: Family, corners: list[float], place: int) -> list[float]:
    left, top, right, bottom = corners
    height, width = model.data.shape[1:]
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise InputError(
            f"box {place} goes from ({left:g}, {top:g}) to ({right:g}, {bottom:g}); a box has left < right and"
            f" top < bottom inside the image of {width} x {height} (width x height)",
            field="boxes",
        )
    return corners


def _check(goal: str, target: int, boxes: Tensor, given: bool) -> None:
    if target != NONE and goal == "vanish":
        raise InputError("what vanishes becomes no class", field="target", remedy="leave target out, or say mislabel")
    kinds = without_padding(boxes)[:, 4]
    if given and goal == "mislabel" and bool((kinds == target).all()):
        raise InputError("every box is of that class already", field="target", remedy="give another class, or none")
