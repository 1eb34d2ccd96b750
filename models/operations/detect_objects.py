"""Object detection: boxes, classes and probabilities, and the picture with the boxes drawn."""

import torch
from pydantic import Field

from models.capabilities import DetectsObjects, finite_rows
from models.evaluation.segmentation import hues
from models.family import Family
from models.nn.boxes import LIMIT, OVERLAP, SCORE, detections, draw_boxes
from models.operations.core.base import ImageParams, Operation, Result, Rows
from models.operations.core.victims.detection import listed


class DetectObjectsParams(ImageParams):
    """Which detections to report."""

    score: float = Field(SCORE, ge=0, le=1, description="Minimum probability of a detection.")
    overlap: float = Field(
        OVERLAP,
        ge=0,
        le=1,
        description="Maximum overlap (IoU) of two detections of one class; "
        "above it only the more probable one is kept.",
    )
    most: int = Field(LIMIT, ge=1, le=LIMIT, description="Maximum number of detections per image.")


class DetectObjects(Operation):
    """A box is left, top, right and bottom in pixels of the model's input."""

    name = "detect-objects"
    aliases = ("locate",)
    summary = "Detects the objects in each image: box, class and probability."
    needs = (DetectsObjects,)
    json_first = True
    Params = DetectObjectsParams

    def batch_key(self, params: DetectObjectsParams) -> tuple:
        return params.score, params.overlap, params.most

    def compute(self, model: Family, rows: Rows, params: DetectObjectsParams) -> Rows:
        maps = model.detection_maps(rows["inputs"])
        table = detections(maps, params.score, params.most, params.overlap)
        return {"table": table.where(finite_rows(maps)[:, None, None], torch.nan)}

    def result(self, model: Family, rows: Rows, outputs: Rows, params: DetectObjectsParams) -> Result:
        items = [{"detections": listed(model, table)} for table in outputs["table"]]
        return Result(
            images=draw_boxes(rows["inputs"], outputs["table"], hues(len(model.data.classes))), facts={"items": items}
        )
