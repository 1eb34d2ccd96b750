"""The job kind "model": a model that was trained elsewhere, checked on random images, becomes a version like any other.

Three kinds of uploads: a model of this service (weights.safetensors and its card), weights of VGG in torchvision's
naming, an ONNX graph. Pickles are never read.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from app.core.errors import AnamorphError, InvalidRequest
from app.core.store import blobs
from models.capabilities import Classifies
from models.imported import vgg
from models.imported.base import Imported
from models.registry import models as published_kinds
from models.types import DataSpec, ModelError
from workers.jobs.job import Result, RunningJob
from workers.onnx.importer import as_list, from_onnx
from workers.store import model_rows as records
from workers.store.models import ENGINE, card_digest, publish

FEW = 2


def run_import(job: RunningJob) -> Result:
    """Imports `spec["upload"]` with `spec["card"]` as a new version of `spec["name"]`."""
    try:
        value, card = imported_model(job.spec, job.stop_if_asked)
    except (AnamorphError, ModelError) as error:
        if getattr(error, "status", 422) < 500:  # another attempt would read the same bytes
            forget(job.spec)
        raise

    def also(conn) -> None:
        records.register(conn, tenant=job.tenant, card=card, job_id=job.id)
        forget(job.spec)

    return Result(value, also)


def imported_model(spec: dict[str, Any], tick: Callable[[], None]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The job's result, and the card of the version."""
    if spec.get("builtin"):
        from workers.store.pretrained import BUILDERS

        return concluded(*BUILDERS[spec["builtin"]](), spec, {"builtin": spec["builtin"]})
    content, card = upload_of(spec), spec["card"]
    tick()
    origin = {"sha256": hashlib.sha256(content).hexdigest(), "format": spec["format"]}
    if "family" in card:
        return own(content, card, spec["name"])
    if spec["format"] == "onnx":
        return concluded(*from_onnx(content, card), spec, origin)
    return concluded(*from_vgg(tensors_of(content), card), spec, origin)


def upload_of(spec: dict[str, Any]) -> bytes:
    try:
        return blobs.path(spec["upload"]).read_bytes()
    except FileNotFoundError:
        raise InvalidRequest("The upload is gone.", field="file", remedy="Upload the file again.") from None


def tensors_of(content: bytes) -> dict[str, Tensor]:
    try:
        return load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise InvalidRequest(f"This is no safetensors file: {str(error)[:200]}", field="file") from None


def own(content: bytes, card: dict[str, Any], name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A model that a service like this one exported: the digest of its card must be that of card and weights."""
    claimed = card.get("digest")
    if card_digest(content, card) != claimed:
        raise InvalidRequest(
            "The digest in the card is not that of this card and these weights: one of them was changed.",
            field="card/digest",
            remedy="Send the card of GET /v1/models/{m} and the file of /weights.safetensors as they came.",
        )
    if not isinstance(card.get("engine"), int) or card["engine"] > ENGINE or card["family"] not in published_kinds():
        raise InvalidRequest("This model was made by a newer version of the service.", field="card/engine")
    try:
        data = DataSpec.from_facts(card["data"])
        model = published_kinds()[card["family"]].create(card["config"], data).load_for_serving(tensors_of(content))
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise InvalidRequest(f"Card and weights make no model: {str(error)[:200]}", field="card") from error
    made = ("engine", "family", "config", "data", "capabilities", "operations", "parameters", "bytes", "digest")
    extra = {key: value for key, value in card.items() if key not in made}
    if name != card.get("name"):
        extra |= {"name": name, "origin": {"digest": claimed, "name": card.get("name")}}
    digest, kept = publish(model, card["data"], extra)
    return {"model": name, "version": digest, "family": model.name, "warnings": []}, kept


def from_vgg(state: dict[str, Tensor], card: dict[str, Any]) -> tuple[Imported, dict[str, Any], dict[str, Any]]:
    read = vgg.read_shapes({name: tuple(tensor.shape) for name, tensor in state.items()})
    facts = facts_of(card, read["channels"], read["classes"])
    config = read["config"] | {name: as_list(card[name]) for name in ("mean", "std") if name in card}
    model = vgg.VGG.create(config, DataSpec.from_facts(facts))
    return model.load_for_serving({name: tensor.float() for name, tensor in state.items()}), facts, {}


def facts_of(card: dict[str, Any], channels: int, classes: int) -> dict[str, Any]:
    """The facts of a dataset that such a model could have learned from."""
    if card.get("channels", channels) != channels:
        raise InvalidRequest(f"The weights take {channels} channels.", field="card/channels")
    labels = card.get("labels") or [str(index) for index in range(classes)]
    if len(labels) != classes:
        raise InvalidRequest(f"There are {len(labels)} labels for {classes} classes.", field="card/labels")
    size = {side: card.get(side) for side in ("height", "width")}
    if missing := [side for side, value in size.items() if value is None]:
        raise InvalidRequest(f"The card does not say the {missing[0]} of images.", field=f"card/{missing[0]}")
    return {"layout": "labelled", **size, "channels": channels, "classes": labels, "columns": {}}


def concluded(
    model: Imported, facts: dict[str, Any], found: dict[str, Any], spec: dict[str, Any], origin: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Published, once random images have a finite answer."""
    trial(model)
    card = spec.get("card") or {}
    extra = {
        "name": spec["name"],
        "seed": None,
        "metrics": found.get("metrics", {}),
        "dataset": None,
        "dataset_digest": None,
        "licence": card.get("licence") or found.get("licence"),
        "attribution": card.get("attribution") or found.get("attribution"),
        "parameters": sum(tensor.numel() for tensor in model.state_dict().values()),
        "origin": origin,
    }
    digest, kept = publish(model, facts, extra)
    value = {"model": spec["name"], "version": digest, "family": model.name, "white_box": white(model)}
    value |= {"metrics": extra["metrics"], "warnings": found.get("warnings", []), "origin": extra["origin"]}
    return value, kept


def trial(model: Imported) -> None:
    """Raises InvalidRequest when a classifier's answers to random images are not numbers."""
    if isinstance(model, Classifies):
        draws = torch.Generator().manual_seed(0)
        with torch.no_grad():
            answers = model.logits(torch.rand((FEW, *model.data.shape), generator=draws))
        if not bool(torch.isfinite(answers).all()):
            raise InvalidRequest("The network answers random images with what is not a number.", field="file")


def white(model: Imported) -> bool:
    return not model.name.startswith("opaque_")


def forget(spec: dict[str, Any]) -> None:
    if "upload" in spec:
        blobs.delete_prefix(spec["upload"])
