"""Simulated images, made to look real."""

from torch import Tensor

from models.capabilities import Refines
from models.family import Family
from models.operations.core import ImageParams, Operation, Result, Rows
from models.tiling import cut, join


class Refine(Operation):
    """The mean distance each image moved comes along. An image of any size keeps its size."""

    name = "refine"
    summary = "Makes simulated images look like real ones."
    needs = (Refines,)
    any_size = True
    Params = ImageParams

    def rows(self, model: Family, inputs: Tensor | None, params: ImageParams) -> Rows:
        tiles, places = cut(inputs, model.data.shape[1:])
        return {"inputs": tiles, "places": places}

    def agreement(self, params: ImageParams) -> tuple:
        return ()

    def compute(self, model: Family, rows: Rows, params: ImageParams) -> Rows:
        return {"images": model.refine(rows["inputs"])}

    def result(self, model: Family, rows: Rows, found: Rows, params: ImageParams) -> Result:
        images = join(found["images"], rows["places"])
        moved = (images - join(rows["inputs"], rows["places"])).abs().flatten(1).mean(1)
        return Result(images=images, facts={"items": [{"moved_l1": value} for value in moved.tolist()]})
