"""A way through latent space, from anchor to anchor."""

from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from models.capabilities import Decodes, Encodes, StyleBased
from models.family import Family
from models.operations.core.base import ImageParams, Operation, Result, Rows
from models.operations.core.latents import LabelParams, decode, fitting_latents, label_rows
from models.types import InputError

MAX_IMAGES = 1024


class InterpolateParams(LabelParams, ImageParams):
    """Each leg between two anchors has `steps` images, its ends included; neighbouring legs share an end."""

    steps: int = Field(9, ge=2, le=128, description="Images from one anchor to the next, both included.")
    path: Literal["lerp", "slerp"] | None = Field(
        None, description="Straight (lerp) or along the sphere (slerp); empty: slerp where codes are only ever drawn."
    )


def lerp(start: Tensor, end: Tensor, share: Tensor) -> Tensor:
    """Points (n, d) on the straight line from start (d,) to end (d,) at `share` (n, 1) in [0, 1]."""
    return start * (1 - share) + end * share


def slerp(start: Tensor, end: Tensor, share: Tensor) -> Tensor:
    """The same along the great circle, on which codes keep the length a Gaussian prior expects (Shoemake 1985)."""
    angle = torch.arccos((start @ end / (start.norm() * end.norm())).clamp(-1, 1))
    if not 1e-3 < angle < torch.pi - 1e-3:  # no angle, no plane, or a code of length zero
        return lerp(start, end, share)
    return (torch.sin((1 - share) * angle) * start + torch.sin(share * angle) * end) / torch.sin(angle)


class Interpolate(Operation):
    """Anchors are latents, or images where the model encodes."""

    name = "interpolate"
    summary = "Decodes a way through latent space between two or more codes or images."
    needs = (Decodes,)
    takes = "either"
    sheet = True
    multiplies = ("steps",)
    Params = InterpolateParams

    def rows(self, model: Family, inputs: Tensor, params: InterpolateParams) -> Rows:
        anchors = fitting_latents(model, self._codes(model, inputs)).double()
        total = (len(anchors) - 1) * (params.steps - 1) + 1
        if len(anchors) < 2 or total > MAX_IMAGES:
            raise InputError(
                f"{len(anchors)} anchors in {params.steps} steps make {max(total, 0)} images; "
                f"allowed are two or more anchors and at most {MAX_IMAGES} images",
                field="inputs",
            )
        straight = isinstance(model, Encodes | StyleBased)
        between = {"lerp": lerp, "slerp": slerp}[params.path or ("lerp" if straight else "slerp")]
        share = torch.linspace(0, 1, params.steps, dtype=torch.float64)[:-1, None]
        legs = [between(start, end, share) for start, end in pairwise(anchors)]
        latents = torch.cat([*legs, anchors[-1:]]).float()
        return {"inputs": latents, **label_rows(model, params.label, total)}

    def batch_key(self, params: InterpolateParams) -> tuple:
        return ()

    def compute(self, model: Family, rows: Rows, params: InterpolateParams) -> Rows:
        return {"images": decode(model, rows["inputs"], rows)}

    def result(self, model: Family, rows: Rows, found: Rows, params: InterpolateParams) -> Result:
        return Result(images=found["images"], latents=rows["inputs"])

    def _codes(self, model: Family, inputs: Tensor) -> Tensor:
        if inputs.ndim != 4:
            return inputs
        if not isinstance(model, Encodes):
            raise InputError("this model does not encode images", field="inputs", remedy="give the anchors as latents")
        return torch.cat([model.encode(image[None].to(model.device)).cpu() for image in inputs])
