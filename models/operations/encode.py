"""Images to codes."""

from models.family import Encodes, Family
from models.operations.core import ImageParams, Operation, Result, Rows


class Encode(Operation):
    """The same image gives the same code: a family that encodes to a distribution gives its mean."""

    name = "encode"
    summary = "Maps images to their latent codes."
    needs = (Encodes,)
    gives = "latents"
    Params = ImageParams

    def agreement(self, params: ImageParams) -> tuple:
        return ()

    def compute(self, model: Family, rows: Rows, params: ImageParams) -> Rows:
        return {"latents": model.encode(rows["inputs"])}

    def result(self, model: Family, rows: Rows, found: Rows, params: ImageParams) -> Result:
        return Result(latents=found["latents"])
