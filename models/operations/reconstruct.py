"""An image through the code and back."""

import math

from models.family import Decodes, Encodes, Family
from models.operations.core import ImageParams, Operation, Result, Rows


class Reconstruct(Operation):
    """The distance of each image from its reconstruction comes along: what the model cannot represent."""

    name = "reconstruct"
    summary = "Encodes images and decodes them again."
    needs = (Encodes, Decodes)
    Params = ImageParams

    def agreement(self, params: ImageParams) -> tuple:
        return ()

    def compute(self, model: Family, rows: Rows, params: ImageParams) -> Rows:
        latents = model.encode(rows["inputs"])
        images = model.decode(latents)
        errors = (images - rows["inputs"]).square().flatten(1).mean(1)
        return {"images": images, "latents": latents, "errors": errors}

    def result(self, model: Family, rows: Rows, found: Rows, params: ImageParams) -> Result:
        items = [{"mse": mse, "psnr": -10 * math.log10(max(mse, 1e-10))} for mse in found["errors"].tolist()]
        return Result(images=found["images"], latents=found["latents"], facts={"items": items})
