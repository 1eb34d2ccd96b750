"""New images from the prior."""

import torch
from pydantic import Field
from torch import Tensor

from models.capabilities import Decodes, HasPrior, StyleBased
from models.family import Family
from models.operations.core.base import Operation, Result, Rows
from models.operations.core.latents import LabelParams, decode, label_rows
from models.seeds import derive, normal_rows
from models.types import InputError

MAX_SAMPLES = 1024


class SamplesParams(LabelParams):
    """Sample i is a function of (seed, i): the first k of n are the same whatever n is."""

    n: int = Field(16, ge=1, le=MAX_SAMPLES, description="How many images.")
    labels: list[int | str] | None = Field(
        None, min_length=1, max_length=MAX_SAMPLES, description="Several classes, taken in turn."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="The same seed gives the same images.")
    truncation: float = Field(
        1.0,
        gt=0,
        le=2,
        description="Distance from the typical image: below 1 less varied images, above 1 stranger ones.",
    )


def sample_rows(model: Family, seed: int, count: int) -> Rows:
    """Standard normal `noise` (count, d) and `uniform` (count,) for the samples of a seed, each row from its own."""
    seeds = [derive(seed, "sample", row) for row in range(count)]
    # 24 bits are all that a float32 below 1 can hold
    uniform = torch.tensor([derive(item, "uniform") >> 39 for item in seeds], dtype=torch.float32) / 2**24
    return {"noise": normal_rows(seeds, model.latent_dim), "uniform": uniform}


class Samples(Operation):
    """A conditional model goes through its classes in turn when no label is given."""

    name = "samples"
    summary = "Draws new images from the model's prior."
    needs = (HasPrior, Decodes)
    takes = "nothing"
    method = "GET"
    sheet = True
    Params = SamplesParams

    def rows(self, model: Family, inputs: Tensor | None, params: SamplesParams) -> Rows:
        if params.label is not None and params.labels is not None:
            raise InputError("label and labels exclude each other", field="labels", remedy="give one of them")
        label = params.labels if params.label is None else params.label
        drawn, factor = sample_rows(model, params.seed, params.n), params.truncation
        if model.spherical and factor != 1:
            raise InputError("this model's latents lie on a sphere and cannot be truncated", field="truncation")
        truncated = {"truncation": torch.full((params.n, 1), factor)} if isinstance(model, StyleBased) else {}
        if not truncated:
            drawn["noise"] = drawn["noise"] * factor
        return {**drawn, **truncated, **label_rows(model, label, params.n, cycle=True)}

    def batch_key(self, params: SamplesParams) -> tuple:
        return ()

    def compute(self, model: Family, rows: Rows, params: SamplesParams) -> Rows:
        condition = (rows["labels"],) if "labels" in rows else ()
        latents = model.draw(rows["noise"], rows["uniform"], *condition)
        if "truncation" in rows:
            latents = model.truncate(latents, rows["truncation"])
        return {"images": decode(model, latents, rows), "latents": latents}

    def result(self, model: Family, rows: Rows, found: Rows, params: SamplesParams) -> Result:
        facts = {"seed": params.seed}
        if "labels" in rows:
            facts["items"] = model.describe_labels(rows["labels"])
        return Result(images=found["images"], latents=found["latents"], facts=facts)
