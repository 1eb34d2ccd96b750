"""Images to codes."""

from pydantic import Field
from torch import Tensor

from models.capabilities import Encodes, HasPosterior
from models.family import Family
from models.operations.core.base import ImageParams, Operation, Result, Rows
from models.seeds import derive, normal_rows
from models.types import InputError


class EncodeParams(ImageParams):
    """The code drawn for image i is a function of (seed, i) and the image."""

    sample: bool = Field(False, description="Draw the code from the distribution that a vae encodes to.")
    seed: int = Field(0, ge=0, lt=2**63, description="The same seed draws the same codes; without sample, no matter.")


class Encode(Operation):
    """The same image gives the same code: of a distribution the mean, unless a draw is asked for."""

    name = "encode"
    summary = "Maps images to their latent codes."
    needs = (Encodes,)
    gives = "latents"
    Params = EncodeParams

    def rows(self, model: Family, inputs: Tensor, params: EncodeParams) -> Rows:
        if not params.sample:
            return {"inputs": inputs}
        if not isinstance(model, HasPosterior):
            raise InputError("this model encodes to one code, not to a distribution", "sample", "leave it out")
        seeds = [derive(params.seed, "encode", row) for row in range(len(inputs))]
        return {"inputs": inputs, "noise": normal_rows(seeds, model.latent_dim)}

    def batch_key(self, params: EncodeParams) -> tuple:
        return ()

    def compute(self, model: Family, rows: Rows, params: EncodeParams) -> Rows:
        if "noise" not in rows:
            return {"latents": model.encode(rows["inputs"])}
        mean, logvar = model.posterior(rows["inputs"])
        return {"latents": mean + (0.5 * logvar).exp() * rows["noise"]}

    def result(self, model: Family, rows: Rows, found: Rows, params: EncodeParams) -> Result:
        return Result(latents=found["latents"])
