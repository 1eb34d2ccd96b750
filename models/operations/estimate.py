"""Regression: the number that a regressor predicts for each image."""

from models.capabilities import Regresses
from models.family import Family
from models.operations.core.base import Operation, Params, Result, Rows


class Estimate(Operation):
    name = "estimate"
    summary = "Predicts a number for each image."
    needs = (Regresses,)
    gives = "facts"

    def batch_key(self, params: Params) -> tuple:
        return ()

    def compute(self, model: Family, rows: Rows, params: Params) -> Rows:
        return {"values": model.estimate(rows["inputs"])}

    def result(self, model: Family, rows: Rows, outputs: Rows, params: Params) -> Result:
        return Result(facts={"items": [{"value": value} for value in outputs["values"].tolist()]})
