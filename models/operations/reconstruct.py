"""An image through the code and back."""

import torch

from models.family import Decodes, Encodes, Family
from models.operations.core import Operation, Params, Result, Rows


class Reconstruct(Operation):
    """The distance of each image from its reconstruction comes along: what the model cannot represent."""

    name = "reconstruct"
    summary = "Encodes images and decodes them again."
    needs = (Encodes, Decodes)

    def agreement(self, params: Params) -> tuple:
        return ()

    def compute(self, model: Family, rows: Rows, params: Params) -> Rows:
        latents = model.encode(rows["inputs"])
        return {"images": model.decode(latents), "latents": latents}

    def result(self, model: Family, rows: Rows, found: Rows, params: Params) -> Result:
        errors = (found["images"] - rows["inputs"]).double().square().flatten(1).mean(1)
        psnr = -10 * torch.log10(errors.clamp_min(1e-10))
        items = [{"mse": mse, "psnr": decibel} for mse, decibel in zip(errors.tolist(), psnr.tolist(), strict=True)]
        return Result(images=found["images"], latents=found["latents"], facts={"items": items})
