"""What an operation found, as the bytes of an answer."""

from typing import Any

import torch

from models.operations.core import Result
from workers import codecs
from workers.codecs.encode import grid as contact_sheet


def encode_answer(result: Result, encoding: str, grid: bool) -> dict[str, Any]:
    """The members of an answer (app/core/envelope.py), less its timings."""
    return {
        "images": encode_images(result.images, encoding, grid),
        "latents": None if result.latents is None else codecs.encode_npy(result.latents),
        "facts": result.facts,
        "extra": {name: encode_images(images, encoding) for name, images in result.pictures.items()},
    }


def encode_images(images: torch.Tensor | None, encoding: str, grid: bool = False) -> list[bytes]:
    """`png` and `webp` give one file per image, or one contact sheet; `npy` one float32 array (n, c, h, w)."""
    if images is None or encoding == "none":
        return []
    if encoding == "npy":
        return [codecs.encode_npy(images)]
    if grid:
        images = contact_sheet(codecs.to_uint8(images))[None]
    return codecs.encode(images, encoding)
