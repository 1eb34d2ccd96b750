"""Calls to tensors and results to bytes: parameters, images and latents of a request, and the files of its answer."""

import base64
import re
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ValidationError

from app.core.errors import InvalidImage, InvalidRequest, UnsupportedOperation
from models.family import Family
from models.operations.core.base import Operation, Params, Result
from workers import codecs
from workers.inference.batching import LoadedModel

P = TypeVar("P", bound=BaseModel)
DATA_URL = re.compile(r"data:image/[a-z]{3,4};base64,")
FILES = ("png", "webp")
"""Encodings that give one file per image."""
ToEncode = tuple[Result, str, bool]
"""A result, the encoding of its images, and whether they go on one contact sheet."""


def operation_for(loaded: LoadedModel, name: str) -> Operation:
    """The operation by name. Raises UnsupportedOperation with the list of what the model supports."""
    supported = loaded.operations
    if name not in supported:
        raise UnsupportedOperation(
            f"This model ({loaded.model.name}) does not support {name}. "
            f"It supports: {', '.join(supported) or 'no operation'}.",
            operations=list(supported),
        )
    return supported[name]()


def read_params(kind: type[P], values: dict[str, Any]) -> P:
    """The typed parameters. Raises InvalidRequest with the first fault; the front end has checked them before."""
    planes = {name: read_plane(values[name], name) for name in getattr(kind, "planes", ()) if values.get(name)}
    try:
        return kind.model_validate(values | planes)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise InvalidRequest(first["msg"], field="/".join(str(part) for part in first["loc"])) from None


def read_plane(text: str, field: str) -> torch.Tensor:
    """A parameter with one number per pixel, uint8 (H, W). Raises InvalidRequest or InvalidImage for `field`."""
    try:
        data = base64.b64decode(DATA_URL.sub("", text, count=1), validate=True)
        return torch.from_numpy(codecs.decode_mask(data).copy())
    except InvalidImage as error:
        error.field = field
        raise
    except ValueError:
        raise InvalidRequest(
            f"{field} must be a PNG in base64.", field=field, remedy="Encode the bytes of the file in base64."
        ) from None


def read_inputs(
    model: Family, operation: Operation, params: Params, images: list[bytes] | None, latents: bytes | None, most: int
) -> np.ndarray | None:
    """The images, uint8 (n, c, h, w), or the latents, float32 (n, d), of a call.

    Where images may have any size, at most as many pixels in all as `most` images of the model's size have.
    """
    if operation.takes == "nothing":
        return None
    if images and operation.any_size and not getattr(params, "resize", False):
        return codecs.decode_alike(model.data.channels, images, most * model.data.height * model.data.width)
    if images and operation.takes in ("images", "either"):
        size = {"height": model.data.height, "width": model.data.width, "channels": model.data.channels}
        try:
            return codecs.decode_batch(size, images, resize=getattr(params, "resize", False))
        except InvalidImage as error:
            if not hasattr(params, "resize") and "resize" in (error.remedy or ""):
                error.remedy = "Send an image of that size."  # this operation does not resize
            raise
    if latents and operation.takes in ("latents", "either"):
        return codecs.decode_latents(latents, model.latent_dim)
    needed = {"either": "latents or images"}.get(operation.takes, operation.takes)
    raise InvalidRequest(f"{operation.name} needs {needed}; the request has none.", field=operation.takes)


def to_tensors(inputs: list[np.ndarray | None]) -> list[torch.Tensor | None]:
    """Images as float32 in [0, 1], those of one shape converted together; latents unchanged."""
    tensors = [None if array is None else torch.from_numpy(array) for array in inputs]
    shapes: dict[tuple, list[int]] = {}
    for index, array in enumerate(inputs):
        if array is not None and array.dtype == np.uint8:
            shapes.setdefault(array.shape[1:], []).append(index)
    for indices in shapes.values():
        together = codecs.to_tensor(np.concatenate([inputs[index] for index in indices]))
        for index, part in zip(indices, together.split([len(inputs[index]) for index in indices]), strict=True):
            tensors[index] = part
    return tensors


def encode_answers(results: list[ToEncode]) -> list[dict[str, Any]]:
    """The members of answers (app/core/calls/messages.py) except their timings."""
    files = encode_together(results)
    return [encode_answer(*each, files.get(index)) for index, each in enumerate(results)]


def encode_together(results: list[ToEncode]) -> dict[int, list[bytes]]:
    """The files by index of the results with one file per image: in a batch an image costs a tenth of a lone one."""
    files_of = {}
    for encoding in FILES:
        shapes: dict[tuple, list[int]] = {}
        for index, (result, its_encoding, grid) in enumerate(results):
            if result.images is not None and its_encoding == encoding and not grid:
                shapes.setdefault(result.images.shape[1:], []).append(index)
        for indices in shapes.values():
            files = iter(codecs.encode(torch.cat([results[index][0].images for index in indices]), encoding))
            files_of |= {index: [next(files) for _ in results[index][0].images] for index in indices}
    return files_of


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
        images = codecs.grid(codecs.to_uint8(images), columns)[None]
    return codecs.encode(images, encoding)
