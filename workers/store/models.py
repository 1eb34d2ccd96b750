"""Checkpoints of jobs and published models, as safetensors and JSON in the blob store."""

import hashlib
import json
from pathlib import Path
from typing import Any

import structlog
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from app.core.errors import AnamorphError, Conflict, NotFound
from app.core.store import blobs, integrity
from app.core.store.database import reading
from app.core.store.integrity import canonical
from app.core.store.models import published
from models.catalog import capabilities
from models.family import ENGINE, Family
from models.imported.opaque import Opaque
from models.registry import derived, families, fitting, imported
from models.training.checkpoint import State
from models.types import DataSpec, ModelError
from workers.onnx.files import runtime

CHECKPOINTS = 2
"""Checkpoints kept for resuming."""
AGAIN = "Or train or import it again: the same request with the same seed makes the same model."
log = structlog.get_logger(__name__)


def pack(tensors: dict[str, Tensor], facts: dict | None = None) -> bytes:
    """safetensors bytes that depend only on names and values, with `facts` in the header."""
    # one header entry: safetensors writes several in random order
    head = {"facts": canonical(facts).decode()} if facts else {"format": "pt"}
    return save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, head)


def unpack(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and facts of a file written by `pack`."""
    with safe_open(path, "pt") as file:
        facts = json.loads((file.metadata() or {}).get("facts", "{}"))
        return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118 it is no mapping


def save_checkpoint(key: str, state: State) -> dict[str, Any]:
    """Stores `state` under `key`; returns its entry in the list of kept checkpoints."""
    data = pack(state.tensors, state.facts)
    blobs.put(key, data, create_only=False)
    digest = hashlib.sha256(data).hexdigest()
    return {"key": key, "sha256": digest, "bytes": len(data), "images": state.facts["images"]}


def kept_checkpoints(newest: dict[str, Any], kept: list[dict]) -> list[dict]:
    """The list with a checkpoint just stored, the newest first."""
    return [newest, *(old for old in kept if old["key"] != newest["key"])][:CHECKPOINTS]


def load_checkpoint(kept: list[dict]) -> State | None:
    """The newest of the kept checkpoints that is intact; None if there is none."""
    for entry in kept:
        try:
            path = blobs.path(entry["key"])
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != entry["sha256"]:
                raise ValueError("the checksum differs")
            with safe_open(path, "pt") as file:
                facts = json.loads(file.metadata()["facts"])
            return State(load(data), facts)
        except (OSError, ValueError, SafetensorError) as error:
            log.warning("checkpoint.unusable", key=entry["key"], error=str(error))
    return None


def model_key(digest: str, name: str) -> str:
    return f"models/{digest}/{name}"


def publish(family: Family, facts: dict[str, Any], extra: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Stores a trained model; returns its digest, over weights and card, and its card.

    `facts` are those of its dataset; `extra` joins the card (name, seed, metrics, attribution). The same training run
    twice gives the same digest.
    """
    weights = pack(family.serving_state())
    card = {
        "engine": ENGINE,
        "family": family.name,
        "config": family.config.model_dump(mode="json"),
        "data": facts,
        "capabilities": sorted(capabilities(family)),
        "operations": fitting(type(family)),
        "parameters": sum(parameter.numel() for parameter in family.parameters()),
        "bytes": len(weights),
        **extra,
    }
    digest = card_digest(weights, card)
    card["digest"] = digest
    for name, data in {"weights.safetensors": weights, "card.json": canonical(card)}.items():
        _put_once(model_key(digest, name), data)
    return digest, card


def card_digest(weights: bytes, card: dict[str, Any]) -> str:
    """SHA-256 over the weights' file and the card without its digest."""
    return hashlib.sha256(weights + integrity.undigested(card)).hexdigest()


def load_card(digest: str) -> dict[str, Any]:
    """The card of a published model. Raises NotFound, or StorageDamaged for a model whose card is missing."""
    try:
        return json.loads(blobs.get(model_key(digest, "card.json")))
    except FileNotFoundError:
        raise _absent(digest) from None
    except ValueError:
        raise integrity.damaged(f"The card of model {digest[:12]} is damaged.", AGAIN) from None


def load_model(digest: str) -> Family:
    """The published model, ready to serve, on the CPU.

    Raises NotFound, Conflict if its release had other networks, or StorageDamaged for missing or damaged files.
    """
    card = load_card(digest)
    weights = read_weights(digest, card)
    kinds = families() | derived() | imported()
    if card["engine"] > ENGINE or card["family"] not in kinds:
        raise AnamorphError(f"Model {digest} needs a newer worker.", remedy="Update the workers.")
    try:
        kind, data = kinds[card["family"]], DataSpec.from_facts(card["data"])
        blank = kind.from_stored(card["config"], data, card["engine"])
        model = blank.load_for_serving(load(weights))
    except ModelError as error:
        raise Conflict(
            f"Model {digest} was made by a release with other networks for {card['family']}.",
            remedy="Train or import it again.",
        ) from error
    for part in model.modules():
        if isinstance(part, Opaque):
            part.run_file = runtime(part.content)
    return model


def read_weights(digest: str, card: dict[str, Any]) -> bytes:
    """The bytes of the weights, which match the digest. Raises NotFound or StorageDamaged."""
    seal = integrity.weights(digest, card)
    try:
        for fresh in (False, True):  # a copy in a cache may be damaged alone
            data = blobs.path(seal.key, fresh).read_bytes()
            if seal.matches([data]):
                return data
    except FileNotFoundError:
        raise _absent(digest) from None
    raise integrity.damaged(f"The stored files of model {digest[:12]} are damaged.", AGAIN)


def _put_once(key: str, data: bytes) -> None:
    """Stores a blob whose key determines its content; other bytes under the key are damaged, and are replaced."""
    try:
        blobs.put(key, data)
    except FileExistsError:
        if blobs.get(key) != data:
            blobs.put(key, data, create_only=False)


def _absent(digest: str) -> AnamorphError:
    """NotFound for a model that was deleted; StorageDamaged for one that only lacks its files."""
    with reading() as conn:
        if published(conn, digest):
            return integrity.damaged(f"Files of model {digest[:12]} are missing from the blob store.", AGAIN)
    return NotFound(f"Model {digest} not found.")
