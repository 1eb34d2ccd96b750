"""Images of one domain as images of the other."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from models.capabilities import Translates
from models.family import Family
from models.nn.tiling import STRIDE, cut, join, widest
from models.operations.core.base import ImageParams, Operation, Result, Rows
from models.types import InputError

BACK = {"ab": "ba", "ba": "ab"}


class TranslateParams(ImageParams):
    """A model trained one way only has that direction. Without `resize` an image of any size keeps its size."""

    direction: Literal["ab", "ba"] | None = Field(None, description="ab or ba; empty: the model's first direction.")
    cycle: bool = Field(False, description="Also translate back, and show the difference from the input.")


def ways(direction: str, params: TranslateParams) -> list[str]:
    """One direction after the other, as the request has it."""
    return [direction, BACK[direction]] if params.cycle else [direction]


class Translate(Operation):
    """With `cycle`, the pictures `back` and `difference` come along, and the mean distance there and back."""

    name = "translate"
    summary = "Translates images to the other domain."
    needs = (Translates,)
    any_size = True
    Params = TranslateParams

    def rows(self, model: Family, inputs: Tensor | None, params: TranslateParams) -> Rows:
        direction = params.direction or model.directions[0]
        wanted = ways(direction, params)
        for way in wanted:
            if way not in model.directions:
                raise InputError(
                    f"this model translates {' and '.join(model.directions)} only, not {way}",
                    field="cycle" if way != direction else "direction",
                )
        tiles, places = cut(inputs, widest(inputs, model.data.shape[1:]), STRIDE)
        rows = {"inputs": tiles, "places": places}
        if len(tiles) > len(inputs):
            known = [model.statistics(image.to(model.device), wanted) for image in inputs]
            for way, each in zip(wanted, zip(*known, strict=True), strict=True):
                rows[way] = torch.stack(each).cpu()[places[:, 0]]
        return rows

    def compute(self, model: Family, rows: Rows, params: TranslateParams) -> Rows:
        """Rows that are tiles bring the statistics of their image, by direction."""
        images, found = rows["inputs"], {}
        for way, name in zip(ways(params.direction or model.directions[0], params), ("images", "back"), strict=False):
            images = model.translate_tiles(images, way, rows[way]) if way in rows else model.translate(images, way)
            found[name] = images
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
