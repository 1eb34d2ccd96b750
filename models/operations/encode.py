"""Encodes images to latent codes."""

from pydantic import Field
from torch import Tensor

from models.capabilities import Encodes, HasPosterior
from models.family import Family
from models.operations.core.base import ImageParams, Operation, Result, Rows
from models.seeds import derive, normal_rows
from models.types import InputError


class EncodeParams(ImageParams):
    """The code drawn for image i depends on (seed, i) and the image alone."""

    sample: bool = Field(False, description="Draw the code from the posterior of a vae, instead of its mean.")
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the drawn codes; ignored unless sample=true.")


class Encode(Operation):
    """Without `sample`, the code is deterministic: for a vae the mean of the posterior."""

    name = "encode"
    summary = "Maps images to their latent codes."
    needs = (Encodes,)
    gives = "latents"
    Params = EncodeParams

    def rows(self, model: Family, inputs: Tensor, params: EncodeParams) -> Rows:
        if not params.sample:
            return {"inputs": inputs}
        if not isinstance(model, HasPosterior):
            raise InputError("This model has no posterior to sample from.", "sample", "Remove sample, or use a vae.")
        seeds = [derive(params.seed, "encode", row) for row in range(len(inputs))]
        return {"inputs": inputs, "noise": normal_rows(seeds, model.latent_dim)}

    def batch_key(self, params: EncodeParams) -> tuple:
        return ()

    def compute(self, model: Family, rows: Rows, params: EncodeParams) -> Rows:
        if "noise" not in rows:
            return {"latents": model.encode(rows["inputs"])}
        mean, logvar = model.posterior(rows["inputs"])
        return {"latents": mean + (0.5 * logvar).exp() * rows["noise"]}

    def result(self, model: Family, rows: Rows, outputs: Rows, params: EncodeParams) -> Result:
        return Result(latents=outputs["latents"])
