"""Images of one domain as images of the other."""

from typing import Literal

from pydantic import Field
from torch import Tensor

from models.family import Family, Translates
from models.operations.core import Operation, Params, Result, Rows
from models.types import InputError

BACK = {"ab": "ba", "ba": "ab"}


class TranslateParams(Params):
    """A model trained one way only has that direction."""

    direction: Literal["ab", "ba"] | None = Field(None, description="ab or ba; empty: the model's first direction.")
    cycle: bool = Field(False, description="Also translate back, and show the difference from the input.")


class Translate(Operation):
    """With `cycle`, the pictures `back` and `difference` come along, and the mean distance there and back."""

    name = "translate"
    summary = "Translates images to the other domain."
    needs = (Translates,)
    Params = TranslateParams

    def rows(self, model: Family, inputs: Tensor | None, params: TranslateParams) -> Rows:
        direction = params.direction or model.directions[0]
        wanted = [direction, BACK[direction]] if params.cycle else [direction]
        for way in wanted:
            if way not in model.directions:
                raise InputError(
                    f"this model translates {' and '.join(model.directions)} only, not {way}",
                    field="cycle" if way != direction else "direction",
                )
        return {"inputs": inputs}

    def compute(self, model: Family, rows: Rows, params: TranslateParams) -> Rows:
        direction = params.direction or model.directions[0]
        found = {"images": model.translate(rows["inputs"], direction)}
        if params.cycle:
            found["back"] = model.translate(found["images"], BACK[direction])
            found["difference"] = (found["back"] - rows["inputs"]).abs()
        return found

    def result(self, model: Family, rows: Rows, found: Rows, params: TranslateParams) -> Result:
        facts = {"direction": params.direction or model.directions[0]}
        pictures = {name: found[name] for name in ("back", "difference") if name in found}
        if "difference" in found:
            facts["items"] = [{"cycle_l1": value} for value in found["difference"].flatten(1).mean(1).tolist()]
        return Result(images=found["images"], facts=facts, pictures=pictures)
