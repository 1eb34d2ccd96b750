"""What a call asks for, typed: the operation, its parameters, its images or latents as tensors."""

from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError

from app.core.errors import InvalidRequest, UnsupportedOperation
from models.family import Family
from models.operations.core import Operation, Params
from models.registry import operations
from workers import codecs

P = TypeVar("P", bound=BaseModel)


def operation_for(model: Family, name: str) -> Operation:
    """Raises UnsupportedOperation, naming what the model can do."""
    able = {key: kind for key, kind in operations().items() if kind.fits(type(model))}
    if name not in able:
        raise UnsupportedOperation(
            f"A model of family {model.name} cannot {name}; it can {', '.join(able) or 'do nothing'}.",
            operations=list(able),
        )
    return able[name]()


def read_params(kind: type[P], values: dict[str, Any]) -> P:
    """The typed parameters. The front end has checked them; who has not is told the first fault by name."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise InvalidRequest(first["msg"], field="/".join(str(part) for part in first["loc"])) from None


def read_inputs(
    model: Family, operation: Operation, params: Params, images: list[bytes] | None, latents: bytes | None
) -> torch.Tensor | None:
    """The images (n, c, h, w) or latents (n, d) of a call, as the operation takes them."""
    if operation.takes == "nothing":
        return None
    if images and operation.takes in ("images", "either"):
        facts = {"height": model.data.height, "width": model.data.width, "channels": model.data.channels}
        return codecs.to_tensor(codecs.decode_batch(facts, images, resize=getattr(params, "resize", False)))
    if latents and operation.takes in ("latents", "either"):
        return torch.from_numpy(codecs.decode_npy(latents, (None, model.latent_dim)))
    wanted = {"either": "latents or images"}.get(operation.takes, operation.takes)
    raise InvalidRequest(f"{operation.name} needs {wanted}; the request has none.", field=operation.takes)
