"""Universal perturbations put on images that clients send, and what a model says of them."""

import io
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from app.core.errors import InvalidRequest, NotFound, UnsupportedOperation
from app.core.store import blobs
from app.core.store import perturbations as rows
from models.operations.classify import Classify
from workers import codecs
from workers.inference.batching import LoadedModel, compute
from workers.inference.model_cache import ModelCache
from workers.inference.requests import read_params


class Applied(BaseModel):
    """Which perturbation, by digest, and which model to ask."""

    model_config = ConfigDict(extra="forbid")

    perturbation: str = Field(pattern="[0-9a-f]{64}")
    model: str | None = Field(None, pattern="[0-9a-f]{64}")


def apply_perturbation(call: dict[str, Any], models: ModelCache) -> dict[str, Any]:
    """The images with the perturbation in whole levels, and the predictions for these very bytes, before and after."""
    asked = read_params(Applied, call["params"])
    try:
        delta = np.load(io.BytesIO(blobs.get(rows.key(asked.perturbation, "delta.npy"))), allow_pickle=False)
    except FileNotFoundError:
        raise NotFound("The files of this perturbation are gone.", remedy="Fit it again.") from None
    channels, height, width = delta.shape
    size = {"height": height, "width": width, "channels": channels}
    before = codecs.decode_batch(size, call["images"])
    steps = np.rint(delta * 255).astype(np.int16)
    after = np.clip(before.astype(np.int16) + steps, 0, 255).astype(np.uint8)
    facts = {"items": described(before, after)}
    if asked.model:
        predict(models.get(asked.model), before, after, facts["items"])
    encoding = call.get("encoding") or "png"
    if encoding == "npy":
        images = [codecs.encode_npy(codecs.to_tensor(after))]
    elif call.get("grid"):
        images = codecs.encode(codecs.grid(after)[None], encoding)
    else:
        images = codecs.encode(after, encoding)
    return {"images": images, "latents": None, "facts": facts, "extra": {}, "sheets": {}, "timings": {}}


def described(before: np.ndarray, after: np.ndarray) -> list[dict[str, Any]]:
    """How large the change is once it is cut off at black and white."""
    changes = (after.astype(np.int16) - before).reshape(len(before), -1)
    return [{"linf_255": int(abs(row).max()), "l2": float(np.linalg.norm(row / 255))} for row in changes]


def predict(loaded: LoadedModel, before: np.ndarray, after: np.ndarray, items: list[dict[str, Any]]) -> None:
    """Adds `clean`, `perturbed` and `fooled`. Raises what the model cannot do."""
    if Classify.name not in loaded.operations:
        raise UnsupportedOperation(f"A model of family {loaded.model.name} does not classify.", field="model")
    if loaded.model.data.shape != before.shape[1:]:
        given, wanted = ("x".join(map(str, shape)) for shape in (before.shape[1:], loaded.model.data.shape))
        raise InvalidRequest(
            f"The perturbation is {given} (channels, height, width), the model's images {wanted}.", field="model"
        )
    operation, params = Classify(), Classify.Params()
    for name, images in {"clean": before, "perturbed": after}.items():
        asked = operation.rows(loaded.model, codecs.to_tensor(images), params)
        (found,) = compute(loaded, operation, params, [asked])
        told = operation.result(loaded.model, asked, found, params).facts["items"]
        for item, answer in zip(items, told, strict=True):
            item[name] = answer["predictions"][0]
    for item in items:
        item["fooled"] = item["clean"]["index"] != item["perturbed"]["index"]
