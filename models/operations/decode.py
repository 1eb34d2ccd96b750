"""Decodes latent codes to images."""

from torch import Tensor

from models.capabilities import Decodes
from models.family import Family
from models.operations.core.base import Operation, Result, Rows
from models.operations.core.latents import LabelParams, decode, fitting_latents, label_rows


class Decode(Operation):
    """Takes the latents that `encode`, `samples` and `project` report."""

    name = "decode"
    summary = "Maps latent codes to images."
    needs = (Decodes,)
    takes = "latents"
    Params = LabelParams

    def rows(self, model: Family, inputs: Tensor, params: LabelParams) -> Rows:
        return {"inputs": fitting_latents(model, inputs), **label_rows(model, params.label, len(inputs))}

    def batch_key(self, params: LabelParams) -> tuple:
        return ()

    def compute(self, model: Family, rows: Rows, params: LabelParams) -> Rows:
        return {"images": decode(model, rows["inputs"], rows)}

    def result(self, model: Family, rows: Rows, outputs: Rows, params: LabelParams) -> Result:
        return Result(images=outputs["images"])
