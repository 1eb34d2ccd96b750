"""`anamorph doctor --blobs`: reads every stored file that the tables refer to, says what is damaged, and repairs it."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from sqlalchemy import select

from app.core.settings import settings
from app.core.store import blobs, contents, integrity
from app.core.store.contents import Item
from app.core.store.database import reading, sqlite_file
from app.core.store.integrity import Seal
from app.core.store.tables import models

REMEDIES = {
    "model": "Train or import it again: the same request with the same seed makes the same model.",
    "dataset": "Delete it and import the same images again.",
    "perturbation": "Delete it and fit it again.",
    "job": "Run it again if its files are needed.",
}
HEAL_SECONDS = 3600


@dataclass(frozen=True)
class Finding:
    """A file that is missing or damaged, and what became of it."""

    item: Item
    key: str
    fault: str
    healed: str | None = None

    def facts(self) -> dict[str, Any]:
        about = {"kind": self.item.kind, "name": self.item.name, "tenant": self.item.row["tenant"]}
        remedy = None if self.healed else REMEDIES[self.item.kind]
        return about | {"key": self.key, "fault": self.fault, "healed": self.healed, "remedy": remedy}


def check_blobs(heal: bool, backup: Path | None, as_json: bool) -> int:
    """Prints what is missing or damaged; returns the exit status, 1 while anything is."""
    file = sqlite_file()
    if file and not file.exists():  # looking must not make one
        typer.echo(json.dumps({"items": 0, "files": 0, "findings": []}) if as_json else "Nothing is stored here yet.")
        return 0
    started, items, files, findings = time.monotonic(), 0, 0, []
    for item in contents.items():
        items += 1
        files += len(item.files())
        for finding in examine(item, heal, backup):
            findings.append(finding)
            if not as_json:
                typer.echo(sentence(finding))
    seconds = round(time.monotonic() - started, 2)
    bad = sum(finding.healed is None for finding in findings)
    if as_json:
        facts = [finding.facts() for finding in findings]
        typer.echo(json.dumps({"items": items, "files": files, "seconds": seconds, "bad": bad, "findings": facts}))
    else:
        done = f", {len(findings) - bad} repaired" if heal else ""
        typer.echo(f"{items} items, {files} files in {seconds} s: {len(findings)} missing or damaged{done}.")
        if bad and not heal:
            typer.echo(
                "`anamorph doctor --blobs --heal` repairs what it can; --from BACKUP also takes a backup's files."
            )
    return 1 if bad else 0


def examine(item: Item, heal: bool, backup: Path | None) -> Iterator[Finding]:
    """The bad files of an item; those of one that changed or ended meanwhile are looked at again."""
    faults = item.faults()
    if faults and (item := item.again()) is not None:
        faults = item.faults()
        healed = repair(item, faults, backup) if heal else {}
        yield from (Finding(item, key, fault, healed.get(key)) for key, fault in faults.items())


def sentence(finding: Finding) -> str:
    told = f"Repaired from {finding.healed}." if finding.healed else REMEDIES[finding.item.kind]
    return f"{finding.fault:8} {finding.item}: {finding.key}. {told}"


def repair(item: Item, faults: dict[str, str], backup: Path | None) -> dict[str, str]:
    """Puts right what can be; returns where the right bytes came from, by key."""
    healed = {}
    for key in faults:
        if key.endswith(".onnx"):  # the next request for it writes it again
            blobs.delete_prefix(key)
            blobs.delete_prefix(f"{key}.json")
            blobs.delete_prefix(f"{key.rpartition('/')[0]}/default.onnx.json")
            healed[key] = "nothing: it was an export, which the next request writes again"
        elif source := known_bytes(item, key) or copied(item, key, backup):
            healed[key] = source
    rest = faults.keys() - healed.keys()
    if item.kind == "dataset" and any(key.endswith(".npy") for key in rest):
        healed |= dict.fromkeys(rest, copied_dataset(item, backup) or made_again(item)) if rest else {}
    elif any(key.endswith("weights.safetensors") for key in rest):
        healed |= dict.fromkeys(rest, made_again(item))
    left = (item.again() or item).faults() if healed else {}
    return {key: source for key, source in healed.items() if source and key not in left}


def known_bytes(item: Item, key: str) -> str | None:
    """Writes a card or the facts of a dataset from the tables."""
    if key.endswith("/card.json"):
        blobs.put(key, integrity.canonical(item.row["card"]), create_only=False)
        return "the database"
    if key.endswith("/facts.json") and item.kind == "dataset":
        blobs.put(key, integrity.dataset_head(item.row["facts"]), create_only=False)
        return "the database"
    return None


def copied(item: Item, key: str, backup: Path | None) -> str | None:
    """Writes a file of known digest from another copy: a backup, the local cache, or a model with the same weights."""
    seal = next((seal for seal in item.seals if seal.key == key), None)
    for source, path in copies(item, key, backup) if seal else ():
        if path.is_file() and intact(seal, path):
            blobs.put(key, path, create_only=False)
            return source
    return None


def copies(item: Item, key: str, backup: Path | None) -> Iterator[tuple[str, Path]]:
    if backup:
        yield "the backup", backup / "blobs" / key
    yield "the cache of this machine", settings().data_dir / "blob-cache" / key
    if key.endswith("weights.safetensors"):
        same = (models.c.bytes == item.row["bytes"]) & (models.c.family == item.row["family"])
        with reading() as conn:
            digests = conn.execute(select(models.c.digest).where(same).distinct()).scalars().all()
        for digest in set(digests) - {item.row["digest"]}:
            other = f"models/{digest}/weights.safetensors"
            if blobs.exists(other):
                yield f"model {digest[:12]}, which has the same weights", blobs.path(other)


def copied_dataset(item: Item, backup: Path | None) -> str | None:
    """Writes the arrays of a dataset from a backup in which they match its digest."""
    if backup is None:
        return None
    digest, facts = item.row["digest"], item.row["facts"]
    paths = {name: backup / "blobs" / "datasets" / digest / name for name in integrity.dataset_files(facts)}
    if not all(path.is_file() for path in paths.values()):
        return None
    hashes = [(name, bytes.fromhex(integrity.sha256_of(path))) for name, path in paths.items()]
    if integrity.dataset_digest(integrity.dataset_head(facts), hashes) != digest:
        return None
    for name, path in paths.items():
        blobs.put(f"datasets/{digest}/{name}", path, create_only=False)
    return "the backup"


def intact(seal: Seal, path: Path) -> bool:
    with path.open("rb") as file:
        return seal.matches(iter(lambda: file.read(blobs.CHUNK), b""))


def made_again(item: Item) -> str | None:
    """Computes weights from the checkpoint of their training, or draws a built-in dataset, in a worker's process."""
    command = [sys.executable, "-m", "workers.store.healing", item.kind, item.row["id"]]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=HEAL_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = ended.stdout.strip().splitlines()  # the last; those before are of the log
    return lines[-1] if ended.returncode == 0 and lines else None
