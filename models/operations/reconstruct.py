"""An image through the code and back."""

import math

from torch import Tensor

from models.capabilities import Decodes, Encodes
from models.evaluation.reconstruct import reconstruct
from models.family import Family
from models.operations.core.base import ImageParams, Operation, Result, Rows
from models.operations.core.latents import LabelParams, label_rows


class ReconstructParams(ImageParams, LabelParams):
    """A conditional model draws each image for the label it recognises, unless told another."""


class Reconstruct(Operation):
    """The distance of each image from its reconstruction comes along: what the model cannot represent."""

    name = "reconstruct"
    summary = "Encodes images and decodes them again."
    needs = (Encodes, Decodes)
    Params = ReconstructParams

    def rows(self, model: Family, inputs: Tensor, params: ReconstructParams) -> Rows:
        asked = {} if params.label is None else label_rows(model, params.label, len(inputs))
        return {"inputs": inputs, **asked}

    def batch_key(self, params: ReconstructParams) -> tuple:
        return ()

    def compute(self, model: Family, rows: Rows, params: ReconstructParams) -> Rows:
        latents, images = reconstruct(model, rows["inputs"], rows.get("labels"))
        errors = (images - rows["inputs"]).square().flatten(1).mean(1)
        return {"images": images, "latents": latents, "errors": errors}

    def result(self, model: Family, rows: Rows, found: Rows, params: ReconstructParams) -> Result:
        items = [{"mse": mse, "psnr": -10 * math.log10(max(mse, 1e-10))} for mse in found["errors"].tolist()]
        return Result(images=found["images"], latents=found["latents"], facts={"items": items})
