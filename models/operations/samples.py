"""Samples: new images decoded from the prior."""

from functools import partial
from typing import Literal

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


class SamplerParams(LabelParams):
    """Parameters of an operation that draws latents."""

    sampler: Literal["mixture", "gaussian", "prior"] | None = Field(
        None,
        description="Distribution of the latents. mixture: Gaussians fitted to the training codes; gaussian: one; "
        "prior: the standard normal, as in the lecture. Default: the model's own.",
    )


class SamplesParams(SamplerParams):
    """Sample i depends on (seed, i) alone: the first k of n are the same for every n."""

    n: int = Field(16, ge=1, le=MAX_SAMPLES, description="Number of images.")
    labels: list[int | str] | None = Field(
        None, min_length=1, max_length=MAX_SAMPLES, description="Several classes, used in turn."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="The same seed gives the same images.")
    truncation: float = Field(
        1.0,
        gt=0,
        le=2,
        description="Truncation: below 1 typical, less varied images; above 1 more varied, less typical ones.",
    )


def sample_rows(model: Family, seed: int, count: int) -> Rows:
    """Standard normal `noise` (count, D) and `uniform` (count,) in [0, 1) for the samples of a seed."""
    seeds = [derive(seed, "sample", row) for row in range(count)]
    # a float32 below 1 holds 24 bits
    uniform = torch.tensor([derive(item, "uniform") >> 39 for item in seeds], dtype=torch.float32) / 2**24
    return {"noise": normal_rows(seeds, model.latent_dim), "uniform": uniform}


def check_sampler(model: Family, sampler: str | None) -> None:
    """Raises InputError if the model has no such sampler, or none at all."""
    if not model.samplers:
        raise InputError(
            f"This {model.name} draws no samples: nothing makes a random code of it look like that of an image.",
            field="model",
            remedy="Train a vae, or an autoencoder whose setting components is not 0.",
        )
    if sampler is not None and sampler not in model.samplers:
        raise InputError(
            f"This model has no sampler {sampler}.", field="sampler", remedy=f"It has {', '.join(model.samplers)}."
        )


class Samples(Operation):
    """Without a label, a conditional model uses its classes in turn."""

    name = "samples"
    summary = "Draws new images from the model's prior."
    needs = (HasPrior, Decodes)
    takes = "nothing"
    method = "GET"
    sheet = True
    price = {"forwards": "n", "backwards": "0"}
    Params = SamplesParams

    def rows(self, model: Family, inputs: Tensor | None, params: SamplesParams) -> Rows:
        if params.label is not None and params.labels is not None:
            raise InputError("label and labels cannot be combined.", field="labels", remedy="Send one of them.")
        label = params.labels if params.label is None else params.label
        check_sampler(model, params.sampler)
        draws, factor = sample_rows(model, params.seed, params.n), params.truncation
        if model.spherical and factor != 1:
            raise InputError("This model's latents lie on a sphere: truncation must be 1.", field="truncation")
        truncated = {"truncation": torch.full((params.n, 1), factor)} if isinstance(model, StyleBased) else {}
        if not truncated:
            draws["noise"] = draws["noise"] * factor
        return {**draws, **truncated, **label_rows(model, label, params.n, cycle=True)}

    def batch_key(self, params: SamplesParams) -> tuple:
        return (params.sampler,)

    def compute(self, model: Family, rows: Rows, params: SamplesParams) -> Rows:
        condition = (rows["labels"],) if "labels" in rows else ()
        draw = model.draw if params.sampler is None else partial(model.draw_from, params.sampler)
        latents = draw(rows["noise"], rows["uniform"], *condition)
        if "truncation" in rows:
            latents = model.truncate(latents, rows["truncation"])
        return {"images": decode(model, latents, rows), "latents": latents}

    def result(self, model: Family, rows: Rows, outputs: Rows, params: SamplesParams) -> Result:
        facts = {"seed": params.seed}
        if "labels" in rows:
            facts["items"] = model.describe_labels(rows["labels"])
        return Result(images=outputs["images"], latents=outputs["latents"], facts=facts)
