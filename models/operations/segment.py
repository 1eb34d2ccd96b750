"""Segmentation: the class of every pixel, as a mask."""

from typing import Literal

from pydantic import Field
from torch import Tensor

from models.capabilities import Segments
from models.evaluation.segmentation import overlay, shares
from models.family import Family
from models.nn.tiling import cut, join
from models.operations.core.base import ImageParams, Operation, Result, Rows


class SegmentParams(ImageParams):
    """The picture to answer with. Without `resize`, images keep their size."""

    picture: Literal["mask", "overlay"] = Field(
        "mask",
        description="mask: a palette PNG whose values are class indices; overlay: the classes in colour over the image "
        "(class 0 uncoloured).",
    )


class Segment(Operation):
    """Reports the fraction of pixels of each class. A mask can be uploaded as part of a segmentation dataset."""

    name = "segment"
    summary = "Predicts the class of each pixel."
    needs = (Segments,)
    any_size = True
    price = {"forwards": "inputs * tiles", "backwards": "0"}
    Params = SegmentParams

    def rows(self, model: Family, inputs: Tensor | None, params: SegmentParams) -> Rows:
        tiles, places = cut(inputs, model.data.shape[1:])
        return {"inputs": tiles, "places": places}

    def batch_key(self, params: SegmentParams) -> tuple:
        return ()

    def compute(self, model: Family, rows: Rows, params: SegmentParams) -> Rows:
        return {"logits": model.pixel_logits(rows["inputs"])}

    def result(self, model: Family, rows: Rows, outputs: Rows, params: SegmentParams) -> Result:
        masks = join(outputs["logits"], rows["places"]).argmax(1).byte()
        items = [{"shares": shares(model.data.classes, mask)} for mask in masks]
        facts = {"classes": list(model.data.classes), "items": items}
        if params.picture == "overlay":
            return Result(images=overlay(join(rows["inputs"], rows["places"]), masks), facts=facts)
        return Result(images=masks, facts=facts)
