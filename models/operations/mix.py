"""Style mixing: the coarse features of one sample with the fine ones of another (Karras et al. 2019)."""

import torch
from pydantic import Field
from torch import Tensor

from models.capabilities import Decodes, HasPrior, StyleBased
from models.family import Family
from models.operations.core.base import Operation, Params, Result, Rows
from models.operations.samples import sample_rows
from models.types import InputError


class MixParams(Params):
    """Image i mixes samples i of the two seeds, as `samples` draws them."""

    n: int = Field(16, ge=1, le=256, description="Number of images.")
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the samples that give the coarse features (pose, shape).")
    other: int = Field(
        1, ge=0, lt=2**63, description="Seed of the samples that give the fine features (detail, colour)."
    )
    crossing: int | None = Field(
        None, ge=1, le=64, description="First layer that is styled by the other sample. Default: the middle layer."
    )


class Mix(Operation):
    """A small `crossing` takes nearly everything from the other sample."""

    name = "mix"
    summary = "Mixes the samples of two seeds: coarse features of one, fine features of the other."
    needs = (HasPrior, Decodes, StyleBased)
    takes = "nothing"
    method = "GET"
    sheet = True
    price = {"forwards": "n", "backwards": "0"}
    Params = MixParams

    def rows(self, model: Family, inputs: Tensor | None, params: MixParams) -> Rows:
        crossing = params.crossing or -(-model.crossings // 2)
        if crossing > model.crossings:
            raise InputError(
                f"crossing must be between 1 and {model.crossings} for this model; you sent {crossing}.",
                field="crossing",
            )
        first, second = (sample_rows(model, seed, params.n) for seed in (params.seed, params.other))
        return (
            first
            | {f"other_{name}": column for name, column in second.items()}
            | {"crossing": torch.full((params.n,), crossing)}
        )

    def batch_key(self, params: MixParams) -> tuple:
        return ()

    def compute(self, model: Family, rows: Rows, params: MixParams) -> Rows:
        coarse = model.draw(rows["noise"], rows["uniform"])
        fine = model.draw(rows["other_noise"], rows["other_uniform"])
        return {"images": model.mix(coarse, fine, rows["crossing"])}

    def result(self, model: Family, rows: Rows, outputs: Rows, params: MixParams) -> Result:
        return Result(
            images=outputs["images"],
            facts={"seed": params.seed, "other": params.other, "crossing": int(rows["crossing"][0])},
        )
