"""Simulated images, made to look real."""

from models.family import Family, Refines
from models.operations.core import Operation, Params, Result, Rows


class Refine(Operation):
    """The mean distance each image moved comes along."""

    name = "refine"
    summary = "Makes simulated images look like real ones."
    needs = (Refines,)

    def compute(self, model: Family, rows: Rows, params: Params) -> Rows:
        images = model.refine(rows["inputs"])
        return {"images": images, "moved": (images - rows["inputs"]).abs().flatten(1).mean(1)}

    def result(self, model: Family, rows: Rows, found: Rows, params: Params) -> Result:
        return Result(
            images=found["images"], facts={"items": [{"moved_l1": value} for value in found["moved"].tolist()]}
        )
