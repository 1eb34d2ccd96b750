"""Simulated images, made to look real."""

import torch
from pydantic import Field
from torch import Tensor

from models.capabilities import Refines
from models.evaluation.refinement import image_noise
from models.family import Family
from models.nn.tiling import cut, join
from models.operations.core.base import ImageParams, Operation, Result, Rows
from models.seeds import derive
from models.types import InputError

MOST = 64


class RefineParams(ImageParams):
    """A form of an image is a function of the seed, its number and the image: the first k of n are always the same."""

    n: int = Field(1, ge=1, le=MOST, description="How many refined forms of each image, one after the other.")
    seed: int = Field(0, ge=0, lt=2**63, description="The same seed gives the same forms.")


class Refine(Operation):
    """The mean distance each image moved comes along. An image of any size keeps its size."""

    name = "refine"
    summary = "Makes simulated images look like real ones."
    needs = (Refines,)
    any_size = True
    Params = RefineParams

    def rows(self, model: Family, inputs: Tensor | None, params: RefineParams) -> Rows:
        if params.n > 1 and not model.noise_dim:
            raise InputError("this model refines an image in one way only", field="n", remedy="leave n out")
        tiles, places = cut(inputs.repeat_interleave(params.n, 0), model.data.shape[1:])
        rows = {"inputs": tiles, "places": places}
        if model.noise_dim:
            forms = [
                image_noise(inputs, model.noise_dim, derive(params.seed, "form", form)) for form in range(params.n)
            ]
            rows["noise"] = torch.stack(forms, 1).flatten(0, 1)[places[:, 0]]  # all tiles of an image get the same
        return rows

    def batch_key(self, params: RefineParams) -> tuple:
        return ()

    def compute(self, model: Family, rows: Rows, params: RefineParams) -> Rows:
        return {"images": model.refine(rows["inputs"], rows.get("noise"))}

    def result(self, model: Family, rows: Rows, found: Rows, params: RefineParams) -> Result:
        images = join(found["images"], rows["places"])
        moved = (images - join(rows["inputs"], rows["places"])).abs().flatten(1).mean(1)
        facts = {"seed": params.seed} if "noise" in rows else {}
        return Result(images=images, facts=facts | {"items": [{"moved_l1": value} for value in moved.tolist()]})
