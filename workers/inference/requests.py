"""What a call asks for, typed: the operation, its parameters, its images or latents as tensors."""

import base64
import re
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ValidationError

from app.core.errors import InvalidImage, InvalidRequest, UnsupportedOperation
from models.family import Family
from models.operations.core.base import Operation, Params
from workers import codecs
from workers.inference.batching import LoadedModel

P = TypeVar("P", bound=BaseModel)
DATA_URL = re.compile(r"data:image/[a-z]{3,4};base64,")


def operation_for(loaded: LoadedModel, name: str) -> Operation:
    """Raises UnsupportedOperation, naming what the model can do."""
    able = loaded.operations
    if name not in able:
        raise UnsupportedOperation(
            f"A model of family {loaded.model.name} cannot {name}; it can {', '.join(able) or 'do nothing'}.",
            operations=list(able),
        )
    return able[name]()


def read_params(kind: type[P], values: dict[str, Any]) -> P:
    """The typed parameters. The front end has checked them; who has not is told the first fault by name."""
    planes = {name: read_plane(values[name], name) for name in getattr(kind, "planes", ()) if values.get(name)}
    try:
        return kind.model_validate(values | planes)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise InvalidRequest(first["msg"], field="/".join(str(part) for part in first["loc"])) from None


def read_plane(text: str, field: str) -> torch.Tensor:
    """A parameter of one number per pixel, uint8 (H, W). Raises InvalidRequest or InvalidImage naming it."""
    try:
        data = base64.b64decode(DATA_URL.sub("", text, count=1), validate=True)
        return torch.from_numpy(codecs.decode_mask(data).copy())
    except InvalidImage as error:
        error.field = field
        raise
    except ValueError:
        raise InvalidRequest("This is no base64 of a PNG.", field=field, remedy="Encode the file's bytes.") from None


def read_inputs(
    model: Family, operation: Operation, params: Params, images: list[bytes] | None, latents: bytes | None, most: int
) -> np.ndarray | None:
    """The images, uint8 (n, c, h, w), or the latents, float32 (n, d), of a call, as the operation takes them.

    Where images may have any size, so many pixels in all as `most` images of the model's size.
    """
    if operation.takes == "nothing":
        return None
    if images and operation.any_size and not getattr(params, "resize", False):
        return codecs.decode_alike(model.data.channels, images, most * model.data.height * model.data.width)
    if images and operation.takes in ("images", "either"):
        facts = {"height": model.data.height, "width": model.data.width, "channels": model.data.channels}
        try:
            return codecs.decode_batch(facts, images, resize=getattr(params, "resize", False))
        except InvalidImage as error:
            if not hasattr(params, "resize") and "resize" in (error.remedy or ""):
                error.remedy = "Send an image of that size."  # this operation does not resize
            raise
    if latents and operation.takes in ("latents", "either"):
        return codecs.decode_latents(latents, model.latent_dim)
    wanted = {"either": "latents or images"}.get(operation.takes, operation.takes)
    raise InvalidRequest(f"{operation.name} needs {wanted}; the request has none.", field=operation.takes)


def to_tensors(inputs: list[np.ndarray | None]) -> list[torch.Tensor | None]:
    """Images as float32 in [0, 1], all of one shape converted together, and latents as they are."""
    found = [None if array is None else torch.from_numpy(array) for array in inputs]
    shapes: dict[tuple, list[int]] = {}
    for index, array in enumerate(inputs):
        if array is not None and array.dtype == np.uint8:
            shapes.setdefault(array.shape[1:], []).append(index)
    for indices in shapes.values():
        together = codecs.to_tensor(np.concatenate([inputs[index] for index in indices]))
        for index, part in zip(indices, together.split([len(inputs[index]) for index in indices]), strict=True):
            found[index] = part
    return found
