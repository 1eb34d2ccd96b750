"""The job kind "model": checks a model that was trained elsewhere on random images and publishes it.

Three kinds of uploads: a model of this service (weights.safetensors and its card), weights of VGG in torchvision's
naming, an ONNX graph. Pickles are never read.
"""

import hashlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import structlog
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from app.core.errors import InvalidRequest
from app.core.settings import settings
from app.core.store import blobs
from models import deadline
from models.capabilities import Classifies
from models.family import ENGINE, Family
from models.imported import vgg
from models.imported.base import Imported
from models.imported.graph import Graph
from models.imported.opaque import Opaque
from models.registry import models as published_kinds
from models.types import DataSpec, ModelError
from workers.jobs.job import Result, RunningJob
from workers.onnx.files import runtime, too_much
from workers.onnx.importer import as_list, from_onnx, require_bounded, runtime_outputs
from workers.sandbox.room import Late
from workers.store import model_rows
from workers.store.models import card_digest, publish

TRIAL_IMAGES = 2
log = structlog.get_logger(__name__)


def run_import(job: RunningJob) -> Result:
    """Imports `spec["upload"]` with `spec["card"]` as a new version of `spec["name"]`."""
    try:
        with deadline.checking(within(settings().sandbox_seconds, job.stop_if_asked)):
            value, card = imported_model(job.spec)
    except Late as error:
        raise too_much(error, "imported") from None
    return Result(value, partial(model_rows.register, tenant=job.tenant, card=card, job_id=job.id))


def within(seconds: float, stop_if_asked: Callable[[], None]) -> Callable[[], None]:
    """A check for `models.deadline` that raises Late after `seconds`, and whatever `stop_if_asked` raises."""
    until = time.monotonic() + seconds

    def check() -> None:
        stop_if_asked()
        if time.monotonic() > until:
            raise Late(
                f"Trials of the file did not end within {seconds:g} s.",
                remedy="Import a smaller network, or raise ANAMORPH_SANDBOX_SECONDS on the worker.",
            )

    return check


def imported_model(spec: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The result of the job, and the card of the published version."""
    if spec.get("builtin"):
        from workers.store.pretrained import BUILDERS

        return publish_import(*BUILDERS[spec["builtin"]](), spec, {"builtin": spec["builtin"]})
    content, card = upload_of(spec), spec["card"]
    deadline.check()
    origin = {"sha256": hashlib.sha256(content).hexdigest(), "format": spec["format"]}
    if "family" in card:
        return republish(content, card, spec["name"])
    if spec["format"] == "onnx":
        return publish_import(*from_onnx(content, card), spec, origin)
    return publish_import(*from_vgg(tensors_of(content), card), spec, origin)


def upload_of(spec: dict[str, Any]) -> bytes:
    try:
        return blobs.path(spec["upload"]).read_bytes()
    except FileNotFoundError:
        raise InvalidRequest("The upload is gone.", field="file", remedy="Upload the file again.") from None


def tensors_of(content: bytes) -> dict[str, Tensor]:
    try:
        return load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        log.warning("safetensors.unreadable", error=str(error)[:200])
        raise InvalidRequest(
            "The file is not a safetensors file, or it is damaged.",
            field="file",
            remedy="Save the weights with safetensors.torch.save_file.",
        ) from None


def republish(content: bytes, card: dict[str, Any], name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Publishes a model exported by this software. The digest in its card must match card and weights."""
    claimed = card.get("digest")
    if card_digest(content, card) != claimed:
        raise InvalidRequest(
            "The digest in the card does not match card and weights: one of them was changed.",
            field="card/digest",
            remedy="Send the card of GET /v1/models/{m} and the file of /weights.safetensors unchanged.",
        )
    if not isinstance(card.get("engine"), int) or card["engine"] > ENGINE or card["family"] not in published_kinds():
        raise InvalidRequest(
            "This model was made by a newer version of the software.",
            field="card/engine",
            remedy="Update the workers.",
        )
    try:
        data = DataSpec.from_facts(card["data"])
        blank = published_kinds()[card["family"]].from_stored(card["config"], data, card["engine"])
        model = blank.load_for_serving(tensors_of(content))
        require_bounded_parts(model)
    except ModelError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        log.warning("import.mismatch", error=str(error)[:200])
        raise InvalidRequest(
            "The weights do not fit the family and config in the card.",
            field="card",
            remedy="Send card and weights of the same version, unchanged.",
        ) from error
    rebuilt = ("engine", "family", "config", "data", "capabilities", "operations", "parameters", "bytes", "digest")
    extra = {key: value for key, value in card.items() if key not in rebuilt}
    if name != card.get("name"):
        extra |= {"name": name, "origin": {"digest": claimed, "name": card.get("name")}}
    digest, new_card = publish(model, card["data"], extra)
    return {"model": name, "version": digest, "family": model.name, "warnings": []}, new_card


def require_bounded_parts(model: Family) -> None:
    """Raises InvalidRequest for imported graphs in the model that the import of an ONNX file would refuse: anybody can
    make a card with a digest that fits."""
    for part in model.modules():
        if isinstance(part, Opaque):
            part.run_file = runtime(part.content)
            part.run_file.read()
            runtime_outputs(part, {"single": part.config.single}, torch.rand((1, *part.data.shape)))
        elif isinstance(part, Graph):
            require_bounded(part)


def from_vgg(state: dict[str, Tensor], card: dict[str, Any]) -> tuple[Imported, dict[str, Any], dict[str, Any]]:
    shapes = vgg.read_shapes({name: tuple(tensor.shape) for name, tensor in state.items()})
    facts = facts_of(card, shapes["channels"], shapes["classes"])
    config = shapes["config"] | {name: as_list(card[name]) for name in ("mean", "std") if name in card}
    model = vgg.VGG.create(config, DataSpec.from_facts(facts))
    return model.load_for_serving({name: tensor.float() for name, tensor in state.items()}), facts, {}


def facts_of(card: dict[str, Any], channels: int, classes: int) -> dict[str, Any]:
    """The facts of the data that the model takes, in the form of a dataset's facts."""
    if card.get("channels", channels) != channels:
        raise InvalidRequest(
            f"card/channels must be {channels}, as in the weights; you sent {card['channels']}.",
            field="card/channels",
        )
    labels = card.get("labels") or [str(index) for index in range(classes)]
    if len(labels) != classes:
        raise InvalidRequest(
            f"card/labels must have {classes} labels, one per class; you sent {len(labels)}.", field="card/labels"
        )
    size = {side: card.get(side) for side in ("height", "width")}
    if missing := [side for side, value in size.items() if value is None]:
        raise InvalidRequest(
            f"card/{missing[0]} is required: the {missing[0]} of the images in pixels.", field=f"card/{missing[0]}"
        )
    return {"layout": "labelled", **size, "channels": channels, "classes": labels, "columns": {}}


def publish_import(
    model: Imported, facts: dict[str, Any], about: dict[str, Any], spec: dict[str, Any], origin: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Publishes the model if its outputs for random images are finite."""
    check_finite(model)
    card = spec.get("card") or {}
    extra = {
        "name": spec["name"],
        "seed": None,
        "metrics": about.get("metrics", {}),
        "dataset": None,
        "dataset_digest": None,
        "licence": card.get("licence") or about.get("licence"),
        "attribution": card.get("attribution") or about.get("attribution"),
        "parameters": sum(tensor.numel() for tensor in model.state_dict().values()),
        "origin": origin,
    }
    digest, new_card = publish(model, facts, extra)
    value = {
        "model": spec["name"],
        "version": digest,
        "family": model.name,
        "white_box": not model.name.startswith("opaque_"),
    }
    value |= {"metrics": extra["metrics"], "warnings": about.get("warnings", []), "origin": extra["origin"]}
    return value, new_card


def check_finite(model: Imported) -> None:
    """Raises InvalidRequest if a classifier's outputs for random images are not finite."""
    if isinstance(model, Classifies):
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            answers = model.logits(torch.rand((TRIAL_IMAGES, *model.data.shape), generator=generator))
        if not bool(torch.isfinite(answers).all()):
            raise InvalidRequest(
                "The outputs of the network for random images are not finite.",
                field="file",
                remedy="Check mean and std: they apply to pixels in [0, 1].",
            )
