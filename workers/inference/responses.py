"""What an operation found, as the bytes of answers."""

from typing import Any

import torch

from models.operations.core.base import Result
from workers import codecs
from workers.codecs.encode import grid as contact_sheet

FILES = ("png", "webp")
Asked = tuple[Result, str, bool]
"""A result, the encoding of its images, and whether they go on one contact sheet."""


def encode_answers(asked: list[Asked]) -> list[dict[str, Any]]:
    """The members of answers (app/core/calls/messages.py), less their timings."""
    files = encode_together(asked)
    return [encode_answer(*each, files.get(index)) for index, each in enumerate(asked)]


def encode_together(asked: list[Asked]) -> dict[int, list[bytes]]:
    """The files of those that want one for each image, by index: per image a batch costs a tenth of a single one."""
    found = {}
    for encoding in FILES:
        shapes: dict[tuple, list[int]] = {}
        for index, (result, wanted, grid) in enumerate(asked):
            if result.images is not None and wanted == encoding and not grid:
                shapes.setdefault(result.images.shape[1:], []).append(index)
        for indices in shapes.values():
            files = iter(codecs.encode(torch.cat([asked[index][0].images for index in indices]), encoding))
            found |= {index: [next(files) for _ in asked[index][0].images] for index in indices}
    return found


def encode_answer(result: Result, encoding: str, grid: bool, files: list[bytes] | None) -> dict[str, Any]:
    return {
        "images": encode_images(result.images, encoding, grid, result.columns) if files is None else files,
        "latents": None if result.latents is None else codecs.encode_npy(result.latents),
        "facts": result.facts | {name: sheet.layout for name, sheet in result.sheets.items()},
        "extra": {name: encode_images(images, encoding) for name, images in result.pictures.items()},
        "sheets": {name: codecs.grid_png(sheet.tiles, sheet.columns, gap=0) for name, sheet in result.sheets.items()},
    }


def encode_images(
    images: torch.Tensor | None, encoding: str, grid: bool = False, columns: int | None = None
) -> list[bytes]:
    """`png` and `webp` give one file per image, or one contact sheet; `npy` one float32 array (n, c, h, w)."""
    if images is None or encoding == "none":
        return []
    if encoding == "npy":
        return [codecs.encode_npy(images)]
    if grid:
        images = codecs.coloured(images) if images.ndim == 3 else images
        images = contact_sheet(codecs.to_uint8(images), columns)[None]
    return codecs.encode(images, encoding)
