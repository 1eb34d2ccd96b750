"""Interpolation in latent space between anchors."""

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
    """Each segment between two anchors has `steps` images, ends included; neighbouring segments share an end."""

    steps: int = Field(9, ge=2, le=128, description="Number of images from one anchor to the next, both included.")
    path: Literal["lerp", "slerp"] | None = Field(
        None,
        description="lerp: straight line; slerp: great circle. Default: lerp for models that encode or are "
        "style-based, else slerp.",
    )


def lerp(start: Tensor, end: Tensor, t: Tensor) -> Tensor:
    """Points (N, D) on the straight line from start (D,) to end (D,) at `t` (N, 1) in [0, 1]."""
    return start * (1 - t) + end * t


def slerp(start: Tensor, end: Tensor, t: Tensor) -> Tensor:
    """Points on the great circle: (sin((1-t) a) start + sin(t a) end) / sin(a), a the angle (Shoemake 1985).

    Keeps the length that codes of a Gaussian prior have.
    """
    angle = torch.arccos((start @ end / (start.norm() * end.norm())).clamp(-1, 1))
    if not 1e-3 < angle < torch.pi - 1e-3:  # (anti)parallel, or a code of length zero
        return lerp(start, end, t)
    return (torch.sin((1 - t) * angle) * start + torch.sin(t * angle) * end) / torch.sin(angle)


class Interpolate(Operation):
    """Anchors are latents, or images if the model encodes."""

    name = "interpolate"
    summary = "Decodes a path through latent space between two or more codes or images."
    needs = (Decodes,)
    takes = "either"
    sheet = True
    multiplies = ("steps",)
    price = {"forwards": "(inputs - 1) * (steps - 1) + 1 + inputs", "backwards": "0"}
    Params = InterpolateParams

    def rows(self, model: Family, inputs: Tensor, params: InterpolateParams) -> Rows:
        anchors = fitting_latents(model, self._codes(model, inputs)).double()
        total = (len(anchors) - 1) * (params.steps - 1) + 1
        if len(anchors) < 2 or total > MAX_IMAGES:
            raise InputError(
                f"interpolate needs at least 2 anchors and makes at most {MAX_IMAGES} images; you sent {len(anchors)} "
                f"anchors with steps={params.steps}: {max(total, 0)} images.",
                field="inputs",
            )
        straight = isinstance(model, Encodes | StyleBased)
        between = {"lerp": lerp, "slerp": slerp}[params.path or ("lerp" if straight else "slerp")]
        t = torch.linspace(0, 1, params.steps, dtype=torch.float64)[:-1, None]
        segments = [between(start, end, t) for start, end in pairwise(anchors)]
        latents = torch.cat([*segments, anchors[-1:]]).float()
        return {"inputs": latents, **label_rows(model, params.label, total)}

    def batch_key(self, params: InterpolateParams) -> tuple:
        return ()

    def compute(self, model: Family, rows: Rows, params: InterpolateParams) -> Rows:
        return {"images": decode(model, rows["inputs"], rows)}

    def result(self, model: Family, rows: Rows, outputs: Rows, params: InterpolateParams) -> Result:
        return Result(images=outputs["images"], latents=rows["inputs"])

    def _codes(self, model: Family, inputs: Tensor) -> Tensor:
        if inputs.ndim != 4:
            return inputs
        if not isinstance(model, Encodes):
            raise InputError(
                "This model does not encode images.", field="inputs", remedy="Send the anchors as latents."
            )
        return torch.cat([model.encode(image[None].to(model.device)).cpu() for image in inputs])
