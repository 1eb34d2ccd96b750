"""Images of one domain as images of the other."""

from typing import Literal

from pydantic import Field
from torch import Tensor

from models.capabilities import Translates
from models.family import Family
from models.operations.core import ImageParams, Operation, Result, Rows
from models.tiling import cut, join, widest
from models.types import InputError

BACK = {"ab": "ba", "ba": "ab"}


class TranslateParams(ImageParams):
    """A model trained one way only has that direction. Without `resize` an image of any size keeps its size."""

    direction: Literal["ab", "ba"] | None = Field(None, description="ab or ba; empty: the model's first direction.")
    cycle: bool = Field(False, description="Also translate back, and show the difference from the input.")


class Translate(Operation):
    """With `cycle`, the pictures `back` and `difference` come along, and the mean distance there and back."""

    name = "translate"
    summary = "Translates images to the other domain."
    needs = (Translates,)
    any_size = True
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
        tiles, places = cut(inputs, widest(inputs, model.data.shape[1:]))
        return {"inputs": tiles, "places": places}

    def compute(self, model: Family, rows: Rows, params: TranslateParams) -> Rows:
        direction = params.direction or model.directions[0]
        found = {"images": model.translate(rows["inputs"], direction)}
        if params.cycle:
            found["back"] = model.translate(found["images"], BACK[direction])
        return found

    def result(self, model: Family, rows: Rows, found: Rows, params: TranslateParams) -> Result:
        facts = {"direction": params.direction or model.directions[0]}
        joined = {name: join(tiles, rows["places"]) for name, tiles in found.items()}
        pictures = {}
        if "back" in joined:
            difference = (joined["back"] - join(rows["inputs"], rows["places"])).abs()
            pictures = {"back": joined["back"], "difference": difference}
            facts["items"] = [{"cycle_l1": value} for value in difference.flatten(1).mean(1).tolist()]
        return Result(images=joined["images"], facts=facts, pictures=pictures)
