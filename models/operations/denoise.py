"""Denoising of images."""

from models.capabilities import Denoises
from models.family import Family
from models.operations.core.base import ImageParams, Operation, Result, Rows


class Denoise(Operation):
    """No noise is added: the images are taken as they are."""

    name = "denoise"
    summary = "Removes noise from images."
    needs = (Denoises,)
    Params = ImageParams

    def batch_key(self, params: ImageParams) -> tuple:
        return ()

    def compute(self, model: Family, rows: Rows, params: ImageParams) -> Rows:
        return {"images": model.denoise(rows["inputs"])}

    def result(self, model: Family, rows: Rows, outputs: Rows, params: ImageParams) -> Result:
        return Result(images=outputs["images"])
