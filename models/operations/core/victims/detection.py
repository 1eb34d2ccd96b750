"""Detectors under attack: objects vanish, are mislabelled, or appear where there are none."""

from typing import Any

import torch
from torch import Tensor

from models.attacks.criteria.classification import Criterion
from models.attacks.criteria.detection import GOALS
from models.capabilities import DetectsObjects
from models.evaluation.segmentation import hues
from models.family import Family
from models.nn.boxes import LIMIT, NONE, Precision, detections, draw_boxes, matches, no_detection, without_padding
from models.operations.core.base import Params, Rows
from models.operations.core.victims.base import Victim, class_index
from models.types import InputError

MATCH_IOU = 0.5
"""Minimum IoU for a detection to match an object."""


class DetectionVictim(Victim):
    capability = DetectsObjects
    title = "detects"
    goals = ("vanish", "fabricate", "mislabel")
    settings = frozenset({"boxes", "goal"})
    fooled = "The goal is reached without an attack: the image is returned unchanged."
    left_out = "Objects that no detection overlaps by half cannot be mislabelled: they are left out."
    nothing_left = (
        "No detection overlaps any of these objects by half, so none can be mislabelled: the image is returned"
        " unchanged."
    )
    presumed = "No boxes were sent: the model's own detections were taken as the truth."

    def outputs(self, model: Family, images: Tensor) -> Tensor:
        return model.detection_maps(images)

    def rows(self, model: Family, inputs: Tensor, params: Params) -> Rows:
        boxes = no_detection(torch.zeros(LIMIT, 6))[:, :5]
        requested = [] if params.boxes is None else params.boxes
        if len(requested) > LIMIT:
            raise InputError(f"boxes takes at most {LIMIT} objects; you sent {len(requested)}.", field="boxes")
        for place, (label, *corners) in enumerate(requested):
            boxes[place] = torch.tensor([*_inside(model, corners, place), class_index(model, label, "boxes")])
        target = NONE if params.target is None else class_index(model, params.target, "target")
        _check(params.goal or self.goals[0], target, boxes, bool(requested))
        count = len(inputs)
        return {
            "boxes": boxes.expand(count, -1, -1),
            "given": torch.full((count,), params.boxes is not None),
            "targets": torch.full((count,), target),
        }

    def criterion(self, model: Family, rows: Rows, clean: Tensor, params: Params) -> Criterion:
        detected = detections(clean)[..., :5]
        boxes = torch.where(rows["given"][:, None, None], rows["boxes"], detected)
        return GOALS[params.goal or self.goals[0]](boxes, rows["targets"]).given_clean_outputs(clean)

    def seen(self, outputs: Tensor) -> Tensor:
        return detections(outputs)

    def truth(self, criterion: Criterion) -> Rows:
        undetected = getattr(criterion, "undetected", None)
        return {"truth": criterion.boxes} | ({} if undetected is None else {"undetected": undetected})

    def describe(self, model: Family, seen: Tensor, found: Rows, row: int, brief: bool = False) -> dict[str, Any]:
        """Numbers of objects, of those found and left out, of false detections; average precision; the detections."""
        rows, truth = without_padding(seen.cpu()), without_padding(found["truth"][row].cpu())
        hits = int(matches(rows, truth, [MATCH_IOU]).sum())
        precision = Precision(len(model.data.classes), [MATCH_IOU])
        precision.add(rows, truth)
        facts = {"objects": len(truth), "found": hits, "false": len(rows) - hits}
        facts["map50"] = precision.summary()["map50"]
        if brief:
            return facts
        left_out = {"left_out": int(found["undetected"][row].sum())} if "undetected" in found else {}
        return facts | left_out | {"detections": listed(model, seen)}

    def given(self, rows: Rows, row: int) -> bool:
        return bool(rows["given"][row])

    def pictures(self, model: Family, found: Rows) -> dict[str, Tensor]:
        paint = hues(len(model.data.classes))
        return {
            "clean_boxes": draw_boxes(found["inputs"], found["clean"], paint),
            "adversarial_boxes": draw_boxes(found["images"], found["adversarial"], paint),
        }


def listed(model: Family, table: Tensor) -> list[dict[str, Any]]:
    """Detections (M, 6) of one image for JSON, most probable first; a box is left, top, right, bottom in pixels."""
    names = model.data.classes
    return [
        {"label": names[int(index)], "index": int(index), "score": score, "box": [round(edge, 3) for edge in box]}
        for *box, index, score in without_padding(table.cpu()).tolist()
    ]


def _inside(model: Family, corners: list[float], place: int) -> list[float]:
    left, top, right, bottom = corners
    height, width = model.data.shape[1:]
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise InputError(
            f"boxes[{place}] must have left < right and top < bottom inside the image of {width} x {height} pixels"
            f" (width x height); you sent left, top, right, bottom = {left:g}, {top:g}, {right:g}, {bottom:g}.",
            field="boxes",
        )
    return corners


def _check(goal: str, target: int, boxes: Tensor, requested: bool) -> None:
    if target != NONE and goal == "vanish":
        raise InputError("goal=vanish takes no target.", field="target", remedy="Remove target, or use goal=mislabel.")
    labels = without_padding(boxes)[:, 4]
    if requested and goal == "mislabel" and bool((labels == target).all()):
        raise InputError("All boxes already have the class target.", field="target", remedy="Send another class.")
