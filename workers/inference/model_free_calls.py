"""Calls that need no model, or only at times: dataset pages, perturbed images, checks of a training's config."""

import io
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from app.core.errors import InvalidRequest, NotFound, UnsupportedOperation
from app.core.store import integrity
from app.core.store import perturbations as rows
from app.core.store.database import reading
from models import deadline
from models.operations.classify import Classify
from models.registry import families
from models.types import DataSpec
from workers import codecs
from workers.data import images_page
from workers.inference.batching import LoadedModel, compute
from workers.inference.model_cache import ModelCache
from workers.inference.tensors import decode_images, read_params


def answer(facts: dict[str, Any], images: list[bytes] = ()) -> dict[str, Any]:
    """The members of an answer; see app/core/calls/messages.py."""
    return {"images": list(images), "latents": None, "facts": facts, "extra": {}, "sheets": {}, "timings": {}}


def validate_training(call: dict[str, Any], models: ModelCache) -> dict[str, Any]:
    """The complete `config` of a training; nothing is built. Raises ConfigError or DataError, as the training would.

    `params`: the family, its settings, and the facts of the dataset.
    """
    params = call["params"]
    config = families()[params["family"]].complete_config(params["config"], DataSpec.from_facts(params["facts"]))
    return answer({"config": config.model_dump(mode="json")})


class DatasetImages(BaseModel):
    """Rows of a dataset, which is given by its digest."""

    model_config = ConfigDict(extra="forbid")

    dataset: str = Field(pattern="[0-9a-f]{64}")
    split: Literal["train", "validation"] = "train"
    column: str | None = None
    start: int = Field(0, ge=0)
    count: int = Field(100, ge=1, le=256)


def dataset_images(call: dict[str, Any], models: ModelCache | None = None) -> dict[str, Any]:
    """The rows as PNGs, or as one contact sheet, and `labels` among the facts if the dataset has labels."""
    params = read_params(DatasetImages, call["params"])
    images, labels = images_page(params.dataset, params.split, params.column, params.start, params.count)
    if call.get("grid") and images:
        images = [codecs.grid_png(np.stack([codecs.decode(image) for image in images]))]
    return answer({} if labels is None else {"labels": labels}, images)


class PerturbationParams(BaseModel):
    """A perturbation, and the model that classifies the images, both by digest."""

    model_config = ConfigDict(extra="forbid")

    perturbation: str = Field(pattern="[0-9a-f]{64}")
    model: str | None = Field(None, pattern="[0-9a-f]{64}")


def apply_perturbation(call: dict[str, Any], models: ModelCache) -> dict[str, Any]:
    """The images with a universal perturbation added in whole grey levels; predictions before and after, if asked."""
    params = read_params(PerturbationParams, call["params"])
    delta = np.load(io.BytesIO(stored_delta(params.perturbation)), allow_pickle=False)
    channels, height, width = delta.shape
    size = {"height": height, "width": width, "channels": channels}
    before = decode_images(size, call["images"])
    steps = np.rint(delta * 255).astype(np.int16)
    after = np.clip(before.astype(np.int16) + steps, 0, 255).astype(np.uint8)
    facts = {"items": change_sizes(before, after)}
    if params.model:
        add_predictions(models.get(params.model), before, after, facts["items"])
    encoding = call.get("encoding") or "png"
    if encoding == "npy":
        return answer(facts, [codecs.encode_npy(codecs.to_tensor(after))])
    return answer(facts, codecs.encode(codecs.grid(after)[None] if call.get("grid") else after, encoding))


def stored_delta(digest: str) -> bytes:
    """The numbers of a perturbation, which match its digest. Raises NotFound or StorageDamaged."""
    with reading() as conn:
        facts = rows.facts_of(conn, digest)
    if facts is None:
        raise NotFound("This perturbation was deleted.", remedy="Fit it again.")
    return integrity.sound(integrity.delta(digest, facts), "The numbers of this perturbation").read_bytes()


def change_sizes(before: np.ndarray, after: np.ndarray) -> list[dict[str, Any]]:
    """Norms of the change that is left after clipping at black and white: linf in grey levels, l2 in [0, 1] units."""
    changes = (after.astype(np.int16) - before).reshape(len(before), -1)
    return [{"linf_255": int(abs(row).max()), "l2": float(np.linalg.norm(row / 255))} for row in changes]


def add_predictions(loaded: LoadedModel, before: np.ndarray, after: np.ndarray, items: list[dict[str, Any]]) -> None:
    """Adds `clean`, `perturbed` and `fooled` to each item. Raises if the model does not classify such images."""
    if Classify.name not in loaded.operations:
        raise UnsupportedOperation(f"This model ({loaded.model.name}) does not support classify.", field="model")
    if loaded.model.data.shape != before.shape[1:]:
        shape, model_shape = ("x".join(map(str, shape)) for shape in (before.shape[1:], loaded.model.data.shape))
        raise InvalidRequest(
            f"The model takes images of {model_shape} (channels, height, width); the perturbation has {shape}.",
            field="model",
            remedy="Use a model for images of that size.",
        )
    operation, params = Classify(), Classify.Params()
    deadline.resume()
    for name, images in {"clean": before, "perturbed": after}.items():
        inputs = operation.rows(loaded.model, codecs.to_tensor(images), params)
        (outputs,) = compute(loaded, operation, params, [inputs])
        predictions = operation.answer(loaded.model, inputs, outputs, params).facts["items"]
        for item, prediction in zip(items, predictions, strict=True):
            item[name] = prediction["predictions"][0]
    for item in items:
        item["fooled"] = item["clean"]["index"] != item["perturbed"]["index"]


MODEL_FREE_CALLS = {
    "dataset_images": dataset_images,
    "apply_perturbation": apply_perturbation,
    "rehearsal": validate_training,
}
"""By the operation of the call."""
