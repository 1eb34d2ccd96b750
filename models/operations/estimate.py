"""The number that belongs to an image."""

from models.capabilities import Regresses
from models.family import Family
from models.operations.core.base import Operation, Params, Result, Rows


class Estimate(Operation):
    name = "estimate"
    summary = "Estimates the number that belongs to each image."
    needs = (Regresses,)
    gives = "facts"

    def batch_key(self, params: Params) -> tuple:
        return ()

    def compute(self, model: Family, rows: Rows, params: Params) -> Rows:
        return {"values": model.estimate(rows["inputs"])}

    def result(self, model: Family, rows: Rows, found: Rows, params: Params) -> Result:
        return Result(facts={"items": [{"value": value} for value in found["values"].tolist()]})
