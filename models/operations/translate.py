"""Image-to-image translation between two domains."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from models.capabilities import Translates
from models.family import Family
from models.nn.tiling import STRIDE, cut, join, widest
from models.operations.core.base import ImageParams, Operation, Result, Rows
from models.types import InputError

REVERSE = {"ab": "ba", "ba": "ab"}


class TranslateParams(ImageParams):
    """A model trained in one direction has that one only. Without `resize`, images keep their size."""

    direction: Literal["ab", "ba"] | None = Field(
        None, description="ab: from domain A (or input) to B (or target); ba: back. Default: the model's first."
    )
    cycle: bool = Field(False, description="Also translate back, and show the difference from the input.")


def directions(direction: str, params: TranslateParams) -> list[str]:
    """The directions to translate in, one after the other."""
    return [direction, REVERSE[direction]] if params.cycle else [direction]


class Translate(Operation):
    """With `cycle`, the answer also has the pictures `back` and `difference` and the mean distance `cycle_l1`."""

    name = "translate"
    summary = "Translates images to the other domain."
    needs = (Translates,)
    any_size = True
    price = {"forwards": "inputs * tiles * (1 + cycle) * (1 + min(tiles - 1, 1))", "backwards": "0"}
    Params = TranslateParams

    def rows(self, model: Family, inputs: Tensor | None, params: TranslateParams) -> Rows:
        direction = params.direction or model.directions[0]
        chain = directions(direction, params)
        for each in chain:
            if each not in model.directions:
                raise InputError(
                    f"This model translates {' and '.join(model.directions)} only; {each} was requested.",
                    field="cycle" if each != direction else "direction",
                )
        tiles, places = cut(inputs, widest(inputs, model.data.shape[1:]), STRIDE)
        rows = {"inputs": tiles, "places": places}
        if len(tiles) > len(inputs):
            statistics = [model.statistics(image.to(model.device), chain) for image in inputs]
            for each, columns in zip(chain, zip(*statistics, strict=True), strict=True):
                rows[each] = torch.stack(columns).cpu()[places[:, 0]]
        return rows

    def compute(self, model: Family, rows: Rows, params: TranslateParams) -> Rows:
        """Rows that are tiles carry the statistics of their image, by direction."""
        images, outputs = rows["inputs"], {}
        chain = directions(params.direction or model.directions[0], params)
        for each, name in zip(chain, ("images", "back"), strict=False):
            images = model.translate_tiles(images, each, rows[each]) if each in rows else model.translate(images, each)
            outputs[name] = images
        return outputs

    def result(self, model: Family, rows: Rows, outputs: Rows, params: TranslateParams) -> Result:
        facts = {"direction": params.direction or model.directions[0]}
        joined = {name: join(tiles, rows["places"]) for name, tiles in outputs.items()}
        pictures = {}
        if "back" in joined:
            difference = (joined["back"] - join(rows["inputs"], rows["places"])).abs()
            pictures = {"back": joined["back"], "difference": difference}
            facts["items"] = [{"cycle_l1": value} for value in difference.flatten(1).mean(1).tolist()]
        return Result(images=joined["images"], facts=facts, pictures=pictures)
