"""Calls that need no model, or only at times: dataset pages, perturbed images, checks and forecasts of trainings."""

import io
from contextlib import suppress
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from app.core.errors import InvalidRequest, NotFound, UnsupportedOperation
from app.core.store import integrity
from app.core.store import perturbations as rows
from app.core.store.database import reading
from models import deadline
from models.family import Config, Family
from models.operations.classify import Classify
from models.registry import families
from models.types import DataSpec
from workers import codecs
from workers.data import images_page
from workers.inference.batching import LoadedModel, compute
from workers.inference.calibration import Calibration
from workers.inference.model_cache import ModelCache
from workers.inference.tensors import decode_images, read_params

START = 0.5, 8.0
"""Seconds from the start of a job to its first update: low, high."""
UPDATES = {"cpu": (0.75, 1.6), "cuda": (0.3, 4.0)}
"""The true time of updates over what the cost of an image and the speed of the machine say, before any training."""
MEASURING = 2.0, 40.0
PROCESS = 450e6, 1000e6
"""Bytes of a process that trains without a network."""
COST_SETTINGS = ("width", "hidden", "body", "batch_size", "adversarial", "adversarial_steps")
"""Trainings that agree in these cost the same per image, about."""
COPIES = 4
"""Networks, gradients and two moments."""
ACTIVATIONS = 300e3
"""Bytes kept for the backward pass, per image and millisecond of its cost: 250 to 375 KB were measured."""
BUILT: dict[tuple, int] = {}
MAX_BUILT = 256


def answer(facts: dict[str, Any], images: list[bytes] = ()) -> dict[str, Any]:
    """The members of an answer; see app/core/calls/messages.py."""
    return {"images": list(images), "latents": None, "facts": facts, "extra": {}, "sheets": {}, "timings": {}}


def validate_training(call: dict[str, Any], models: ModelCache) -> dict[str, Any]:
    """The complete `config` of a training, and its `forecast`. Raises ConfigError or DataError, as the training would.

    `params`: the family, its settings, and the facts of the dataset.
    """
    params = call["params"]
    family, data = families()[params["family"]], DataSpec.from_facts(params["facts"])
    config = family.complete_config(params["config"], data)
    facts = {"config": config.model_dump(mode="json"), "forecast": forecast(family, config, data)}
    return answer(facts)


def forecast(family: type[Family], config: Config, data: DataSpec) -> dict[str, Any] | None:
    """Time and memory of a training on an idle machine like this one, low and high; see docs/guides/train.md.

    None until the speed of this machine is known. Trainings of the same kind that have finished count before it.
    """
    slowness, device = Calibration.slowness, Calibration.device
    if slowness is None:
        return None
    rates = known_rates(family.name, config.model_dump(mode="json"), data)
    milliseconds = family.milliseconds_per_image(config, data)
    if rates:
        low, high = config.images / rates[-1] * 0.9, config.images / rates[0] * 1.2
    else:
        low, high = (config.images * milliseconds / 1000 * slowness * factor for factor in UPDATES[device])
    parts = {"start": [seconds * slowness for seconds in START], "updates": [low, high]}
    parts["measuring"] = [seconds * slowness for seconds in MEASURING]
    weights = COPIES * weight_bytes(family, config, data)
    activations = config.batch_size * milliseconds * ACTIVATIONS
    return {
        "effort": config.effort,
        "images": config.images,
        "updates": -(-config.images // config.batch_size),
        "device": device,
        "seconds": [round(parts["start"][side] + parts["updates"][side], 1) for side in (0, 1)],
        "parts": {name: [round(seconds, 1) for seconds in both] for name, both in parts.items()},
        "memory_bytes": [round(PROCESS[0] + weights + activations), round(PROCESS[1] + 2 * weights + 4 * activations)],
        "trainings": len(rates),
    }


def known_rates(family: str, config: dict[str, Any], data: DataSpec) -> list[float]:
    """Images per second of finished trainings that cost the same per image, ascending."""
    shape = data.channels, data.height, data.width
    return sorted(
        rate.images_per_second
        for rate in Calibration.rates
        if (rate.family, rate.device) == (family, Calibration.device)
        and tuple(rate.data.get(name) for name in ("channels", "height", "width")) == shape
        and all(rate.config.get(name) == config.get(name) for name in COST_SETTINGS)
    )


def weight_bytes(family: type[Family], config: Config, data: DataSpec) -> int:
    """Bytes of the networks of a complete config. They are built without memory, once for each size."""
    key = family.name, config.model_dump_json(exclude={"images", "effort"}), data.shape, len(data.classes or ())
    if key not in BUILT:
        if len(BUILT) >= MAX_BUILT:
            BUILT.clear()
        with torch.device("meta"):
            network = family(config, data)
            with suppress(RuntimeError):  # its layers depend on random numbers
                network.grow_to(network.total - config.batch_size)
        BUILT[key] = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    return BUILT[key]


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
