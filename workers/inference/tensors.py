"""Calls to tensors and results to bytes: parameters, images and latents of a request, and the files of its answer."""

from functools import lru_cache, partial
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ValidationError

from app.core.errors import InvalidImage, InvalidRequest, UnsupportedOperation, from_problem
from app.core.images import IN_PROCESS_PIXELS, Header, from_base64
from app.core.settings import settings
from models import deadline
from models.family import Family
from models.operations.core.base import Operation, Params, Result
from workers import codecs
from workers.inference.batching import LoadedModel
from workers.sandbox.room import Broken, NeedsMemory, Raised, Room

P = TypeVar("P", bound=BaseModel)
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
    data = from_base64(text, field)
    try:
        header = codecs.read_header(data)
        costly = header.cost > IN_PROCESS_PIXELS
        mask = decode_sealed("decode_mask", data, header=header) if costly else codecs.decode_mask(data)
    except InvalidImage as error:
        error.field = field
        raise
    return torch.from_numpy(mask.copy())


def read_inputs(
    model: Family,
    operation: Operation,
    params: Params,
    images: list[bytes] | None,
    latents: bytes | None,
    most: int,
    pixels: int | None = None,
) -> np.ndarray | None:
    """The images, uint8 (n, c, h, w), or the latents, float32 (n, d), of a call.

    Where images may have any size, at most as many pixels in all as `most` images of the model's size have. Decoding
    may cost at most `pixels` (app/core/images.py), by default those of a call.
    """
    if operation.takes == "nothing":
        return None
    if images and operation.takes in ("images", "either"):
        resize = getattr(params, "resize", False)
        size = {"height": model.data.height, "width": model.data.width, "channels": model.data.channels}
        if operation.any_size and not resize:
            headers, sealed = read_headers(images, pixels)
            one = partial(decode_sealed, "decode") if sealed else codecs.decode
            return codecs.decode_alike(
                size["channels"], images, most * size["height"] * size["width"], headers, one=one
            )
        try:
            return decode_images(size, images, resize, pixels)
        except InvalidImage as error:
            if not hasattr(params, "resize") and "resize" in (error.remedy or ""):
                error.remedy = "Send an image of that size."  # this operation does not resize
            raise
    if latents and operation.takes in ("latents", "either"):
        return codecs.decode_latents(latents, model.latent_dim)
    needed = {"either": "latents or images"}.get(operation.takes, operation.takes)
    raise InvalidRequest(f"{operation.name} needs {needed}; the request has none.", field=operation.takes)


def decode_images(
    size: dict[str, int], images: list[bytes], resize: bool = False, pixels: int | None = None
) -> np.ndarray:
    """uint8 (n, channels, height, width) of images of this `size`, or of any where they are resized."""
    headers, sealed = read_headers(images, pixels)
    one = partial(decode_sealed, "decode_for") if sealed else codecs.decode_for
    return codecs.decode_batch(size, images, headers, resize=resize, one=one)


def read_headers(images: list[bytes], pixels: int | None) -> tuple[list[Header], bool]:
    """The headers of the images of a call, and whether the images are decoded in a room."""
    headers = codecs.read_headers(images, pixels or settings().call_pixels)
    return headers, sum(header.cost for header in headers) > IN_PROCESS_PIXELS


def decode_sealed(function: str, *arguments: Any, header: Header, **options: Any) -> np.ndarray:
    """What `workers.codecs` would return. Raises InvalidImage also where the image breaks the decoder."""
    deadline.check()
    try:
        with deadline.paused():  # another process decodes
            answer = decoders().call("run", function, list(arguments), list(header), options)
    except (Broken, NeedsMemory, Raised) as error:
        raise InvalidImage(
            f"The {header.format} image cannot be decoded. {error.detail}",
            remedy="Re-save it as an 8-bit PNG in an image editor.",
        ) from error
    if "problem" in answer:
        raise from_problem(answer["problem"])
    return answer["pixels"]


@lru_cache
def decoders() -> Room:
    return Room("workers.codecs.sealed")


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
            deadline.check()
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
