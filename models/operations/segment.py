"""The class of every pixel, as a mask."""

from typing import Literal

from pydantic import Field
from torch import Tensor

from models.capabilities import Segments
from models.evaluation.segmentation import overlay, shares
from models.family import Family
from models.nn.tiling import cut, join
from models.operations.core.base import ImageParams, Operation, Result, Rows


class SegmentParams(ImageParams):
    """What to show. Without `resize` an image of any size keeps its size."""

    picture: Literal["mask", "overlay"] = Field(
        "mask", description="mask: a PNG whose values are class indices, which viewers show in colours; overlay: those"
        " colours over the image, background left as it is."
    )  # fmt: skip


class Segment(Operation):
    """The share of each class comes along. A mask can be uploaded again, as part of a dataset of masks."""

    name = "segment"
    summary = "Gives each pixel its class."
    needs = (Segments,)
    any_size = True
    Params = SegmentParams

    def rows(self, model: Family, inputs: Tensor | None, params: SegmentParams) -> Rows:
        tiles, places = cut(inputs, model.data.shape[1:])
        return {"inputs": tiles, "places": places}

    def batch_key(self, params: SegmentParams) -> tuple:
        return ()

    def compute(self, model: Family, rows: Rows, params: SegmentParams) -> Rows:
        return {"logits": model.pixel_logits(rows["inputs"])}

    def result(self, model: Family, rows: Rows, found: Rows, params: SegmentParams) -> Result:
        masks = join(found["logits"], rows["places"]).argmax(1).byte()
        items = [{"shares": shares(model.data.classes, mask)} for mask in masks]
        facts = {"classes": list(model.data.classes), "items": items}
        if params.picture == "overlay":
            return Result(images=overlay(join(rows["inputs"], rows["places"]), masks), facts=facts)
        return Result(images=masks, facts=facts)
