"""Reconstruction: encodes images and decodes them again."""

import math

from torch import Tensor

from models.capabilities import Decodes, Encodes, reconstruct
from models.family import Family
from models.operations.core.base import ImageParams, Operation, Result, Rows
from models.operations.core.latents import LabelParams, label_rows


class ReconstructParams(ImageParams, LabelParams):
    """A conditional model decodes for the label it infers, unless `label` is sent."""


class Reconstruct(Operation):
    """Reports the mean squared error and the PSNR in dB of each reconstruction."""

    name = "reconstruct"
    summary = "Encodes images and decodes them again."
    needs = (Encodes, Decodes)
    price = {"forwards": "inputs * (2 + Conditional)", "backwards": "0"}
    Params = ReconstructParams

    def rows(self, model: Family, inputs: Tensor, params: ReconstructParams) -> Rows:
        labels = {} if params.label is None else label_rows(model, params.label, len(inputs))
        return {"inputs": inputs, **labels}

    def batch_key(self, params: ReconstructParams) -> tuple:
        return ()

    def compute(self, model: Family, rows: Rows, params: ReconstructParams) -> Rows:
        latents, images = reconstruct(model, rows["inputs"], rows.get("labels"))
        errors = (images - rows["inputs"]).square().flatten(1).mean(1)
        return {"images": images, "latents": latents, "errors": errors}

    def result(self, model: Family, rows: Rows, outputs: Rows, params: ReconstructParams) -> Result:
        items = [{"mse": mse, "psnr": -10 * math.log10(max(mse, 1e-10))} for mse in outputs["errors"].tolist()]
        return Result(images=outputs["images"], latents=outputs["latents"], facts={"items": items})
