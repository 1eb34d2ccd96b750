"""What the tables refer to in the blob store, item by item, and which of its files are missing or damaged."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Table, select, true, tuple_

from app.core.store import blobs, integrity
from app.core.store.database import reading
from app.core.store.integrity import Seal
from app.core.store.tables import datasets, jobs, models, perturbations

Row = dict[str, Any]
Read = Callable[[str], Iterable[bytes]]
PAGE = 200
"""Rows that are read in one transaction."""


@dataclass(frozen=True)
class Item:
    """A model, dataset, perturbation or job. `seals`: files of known digest; `keys`: files that must exist."""

    kind: str
    name: str
    row: Row = field(compare=False)
    seals: tuple[Seal, ...] = ()
    keys: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind} {self.name} of {self.row['tenant']}"

    def files(self) -> list[str]:
        """The keys that `faults` looks at."""
        arrays = ["facts.json", *integrity.dataset_files(self.row["facts"])] if self.kind == "dataset" else []
        folder = prefix(self.kind, self.row)
        return [*(seal.key for seal in self.seals), *self.keys, *(f"{folder}/{name}" for name in arrays)]

    def faults(self, read: Read = blobs.chunks) -> dict[str, str]:
        """Of each bad file, by key, whether it is "missing" or "damaged". Reads every byte, in pieces."""
        found = {seal.key: _fault(seal, read) for seal in self.seals}
        found |= {key: None if _exists(key, read) else "missing" for key in self.keys}
        if self.kind == "dataset":
            found |= _dataset_faults(self.row["digest"], self.row["facts"], read)
        return {key: fault for key, fault in found.items() if fault}

    def again(self) -> "Item | None":
        """The item as the tables have it now; None when it is gone."""
        table, make = KINDS[self.kind]
        mine = [column == self.row[column.name] for column in table.primary_key]
        with reading() as conn:
            row = conn.execute(select(table).where(*mine)).mappings().first()
        return row and make(dict(row))


def items() -> Iterator[Item]:
    """Every item of all tenants; a model or dataset that several rows name comes once."""
    for kind, (table, make) in KINDS.items():
        seen: set[str] = set()
        for row in _rows(table, *CONDITIONS.get(kind, ())):
            if kind == "job" or row["digest"] not in seen:
                seen |= set() if kind == "job" else {row["digest"]}
                yield make(row)


def prefix(kind: str, row: Row) -> str:
    """Where the files of an item lie, with those that no digest covers."""
    return f"jobs/{row['id']}" if kind == "job" else f"{kind}s/{row['digest']}"


def _rows(table: Table, *conditions: ColumnElement) -> Iterator[Row]:
    """The rows by primary key, in short transactions."""
    key, after = tuple(table.primary_key), None
    while True:
        later = true() if after is None else tuple_(*key) > tuple_(*after)
        with reading() as conn:
            page = conn.execute(select(table).where(*conditions, later).order_by(*key).limit(PAGE)).mappings().all()
        yield from map(dict, page)
        if len(page) < PAGE:
            return
        after = [page[-1][column.name] for column in key]


def _model(row: Row) -> Item:
    digest, card = row["digest"], row["card"]
    folder = f"models/{digest}"
    seals = [integrity.weights(digest, card)]
    seals.append(Seal(f"{folder}/card.json", hashlib.sha256(integrity.canonical(card)).hexdigest()))
    for key, _ in blobs.list(folder):
        if key.endswith(".onnx.json"):
            seals += _onnx(folder, key)
    return Item("model", f"{row['name']} ({digest[:12]})", row, tuple(dict.fromkeys(seals)))


def _onnx(folder: str, key: str) -> list[Seal]:
    try:
        facts = json.loads(blobs.get(key))
        return [Seal(f"{folder}/{facts['part']}.onnx", facts["sha256"])]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError):  # unreadable, or of a release without digests
        return []


def _dataset(row: Row) -> Item:
    return Item("dataset", f"{row['name']} ({row['digest'][:12]})", row)


def _perturbation(row: Row) -> Item:
    pictures = (f"perturbations/{row['digest']}/{name}" for name in ("picture.png", "examples.png"))
    return Item("perturbation", row["name"], row, (integrity.delta(row["digest"], row["facts"]),), tuple(pictures))


def _job(row: Row) -> Item:
    """A job with its checkpoints, the files of its result, and its upload while it needs it."""
    ref, result, spec = row["checkpoint"] or {}, row["result"] or {}, row["spec"]
    seals, keys = [], []
    for entry in [*_entries(ref.get("kept")), *_entries(ref.get("marks"))]:
        seals.append(Seal(entry["key"], entry["sha256"]))
    keys += [ref["delta"]] if isinstance(ref.get("delta"), str) else []
    digests = result.get("sha256") or {}
    for name, key in (result.get("artifacts") or {}).items():
        seals += [Seal(key, digests[name])] if name in digests else []
        keys += [] if name in digests else [key]
    if row["state"] in ("queued", "running") and isinstance(spec.get("upload"), str):
        keys.append(spec["upload"])
    return Item("job", f"{row['id']} ({row['kind']}, {row['state']})", row, tuple(seals), tuple(keys))


def _entries(kept: Any) -> Iterable[Row]:
    """Checkpoints with a digest; those of reports are no files."""
    entries = kept if isinstance(kept, list) else ()
    return (entry for entry in entries if isinstance(entry, dict) and {"key", "sha256"} <= entry.keys())


def _exists(key: str, read: Read) -> bool:
    try:
        next(iter(read(key)), None)
    except FileNotFoundError:
        return False
    return True


def _fault(seal: Seal, read: Read) -> str | None:
    try:
        return None if seal.matches(read(seal.key)) else "damaged"
    except FileNotFoundError:
        return "missing"


def _dataset_faults(digest: str, facts: Row, read: Read) -> dict[str, str | None]:
    folder, head = f"datasets/{digest}", integrity.dataset_head(facts)
    found = {f"{folder}/facts.json": _fault(Seal(f"{folder}/facts.json", hashlib.sha256(head).hexdigest()), read)}
    hashes: list[tuple[str, bytes]] = []
    for name in integrity.dataset_files(facts):
        try:
            hashes.append((name, _sha256(read(f"{folder}/{name}"))))
        except FileNotFoundError:
            found[f"{folder}/{name}"] = "missing"
    if len(found) == 1 and integrity.dataset_digest(head, hashes) != digest:  # the digest covers all arrays together
        found |= {f"{folder}/{name}": "damaged" for name, _ in hashes}
    return found


def _sha256(pieces: Iterable[bytes]) -> bytes:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.digest()


KINDS: dict[str, tuple[Table, Callable[[Row], Item]]] = {
    "dataset": (datasets, _dataset),
    "model": (models, _model),
    "perturbation": (perturbations, _perturbation),
    "job": (jobs, _job),
}
CONDITIONS = {
    "dataset": (datasets.c.deleted_at.is_(None),),
    "job": (jobs.c.checkpoint.is_not(None) | jobs.c.result.is_not(None) | jobs.c.state.in_(("queued", "running")),),
}
