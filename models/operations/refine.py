"""Refinement: makes simulated images look real (SimGAN)."""

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

MAX_FORMS = 64


class RefineParams(ImageParams):
    """Form i of an image depends on the seed, i and the image alone: the first k of n are the same for every n."""

    n: int = Field(1, ge=1, le=MAX_FORMS, description="Number of refined forms of each image.")
    seed: int = Field(0, ge=0, lt=2**63, description="The same seed gives the same forms.")


class Refine(Operation):
    """Reports `moved_l1`, the mean absolute change per pixel. Images keep their size."""

    name = "refine"
    summary = "Makes simulated images look like real ones."
    needs = (Refines,)
    any_size = True
    price = {"forwards": "inputs * n * tiles", "backwards": "0"}
    Params = RefineParams

    def rows(self, model: Family, inputs: Tensor | None, params: RefineParams) -> Rows:
        if params.n > 1 and not model.noise_dim:
            raise InputError("This model has one refined form per image.", field="n", remedy="Remove n.")
        tiles, places = cut(inputs.repeat_interleave(params.n, 0), model.data.shape[1:])
        rows = {"inputs": tiles, "places": places}
        if model.noise_dim:
            forms = [
                image_noise(inputs, model.noise_dim, derive(params.seed, "form", form)) for form in range(params.n)
            ]
            rows["noise"] = torch.stack(forms, 1).flatten(0, 1)[
                places[:, 0]
            ]  # all tiles of an image get the same noise
        return rows

    def batch_key(self, params: RefineParams) -> tuple:
        return ()

    def compute(self, model: Family, rows: Rows, params: RefineParams) -> Rows:
        return {"images": model.refine(rows["inputs"], rows.get("noise"))}

    def result(self, model: Family, rows: Rows, outputs: Rows, params: RefineParams) -> Result:
        images = join(outputs["images"], rows["places"])
        change = (images - join(rows["inputs"], rows["places"])).abs().flatten(1).mean(1)
        facts = {"seed": params.seed} if "noise" in rows else {}
        return Result(images=images, facts=facts | {"items": [{"moved_l1": value} for value in change.tolist()]})
