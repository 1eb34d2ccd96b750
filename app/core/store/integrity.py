"""Whether stored bytes are those that were written: digests in the tables, and files checked before they are used."""

import hashlib
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from app.core.errors import StorageDamaged
from app.core.store import blobs

KNOWN_FILES = 1024
"""Files that were found intact are not read again while size, time and inode stay the same."""
REPAIR = "`anamorph doctor --blobs --heal` repairs what it can"


@dataclass(frozen=True)
class Seal:
    """What a blob must hold: SHA-256 over `head`, its bytes and `tail` is `digest`."""

    key: str
    digest: str
    head: bytes = b""
    tail: bytes = b""

    def matches(self, pieces: Iterable[bytes]) -> bool:
        digest = hashlib.sha256(self.head)
        for piece in pieces:
            digest.update(piece)
        digest.update(self.tail)
        return digest.hexdigest() == self.digest


def canonical(value: Any) -> bytes:
    """JSON with one spelling: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def undigested(facts: dict[str, Any]) -> bytes:
    """A card, or the facts of a perturbation, as the digest in it covers them."""
    return canonical({name: value for name, value in facts.items() if name != "digest"})


def weights(digest: str, card: dict[str, Any]) -> Seal:
    """The weights of a model: its digest covers them and its card."""
    return Seal(f"models/{digest}/weights.safetensors", digest, tail=undigested(card))


def delta(digest: str, facts: dict[str, Any]) -> Seal:
    """The numbers of a universal perturbation: its digest covers its facts and them."""
    return Seal(f"perturbations/{digest}/delta.npy", digest, head=undigested(facts))


def dataset_head(facts: dict[str, Any]) -> bytes:
    """The facts of a dataset as they are stored and digested."""
    return json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def dataset_files(facts: dict[str, Any]) -> list[str]:
    """Names of the arrays of a dataset, in the order in which its digest covers them."""
    return sorted(f"{side}/{column}.npy" for side, columns in facts["columns"].items() for column in columns)


def dataset_digest(head: bytes, files: Iterable[tuple[str, bytes]]) -> str:
    """The digest of a dataset from its facts and (name, SHA-256) of each array."""
    digest = hashlib.sha256(head)
    for name, file_digest in files:
        digest.update(name.encode())
        digest.update(file_digest)
    return digest.hexdigest()


def sound(seal: Seal, what: str, remedy: str = "") -> Path:
    """A local file with exactly the bytes of `seal`. Raises StorageDamaged if they are missing or others.

    `what` names the thing in the error, with `remedy` what a client can do besides asking the administrator.
    """
    try:
        path = blobs.path(seal.key)
        if not _intact(seal, path):
            path = blobs.path(seal.key, fresh=True)  # a copy in a cache may be damaged alone
        if _intact(seal, path):
            return path
    except FileNotFoundError:
        raise damaged(f"{what} are missing from the blob store.", remedy) from None
    raise damaged(f"{what} are damaged: the stored bytes are not those that were written.", remedy)


def picture(key: str, what: str, remedy: str = "") -> bytes:
    """A stored PNG, whose own checksums are right. Raises FileNotFoundError, or StorageDamaged."""
    data = blobs.get(key)
    if not _is_png(data):
        raise damaged(f"{what} is damaged: its checksums are wrong.", remedy)
    return data


def _is_png(data: bytes) -> bool:
    """Whether the data are whole chunks of a PNG with right CRC-32, the last one IEND."""
    at, kind = 8, b""
    while at + 12 <= len(data) and kind != b"IEND":
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        if zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return False
        at = end + 4
    return data.startswith(b"\x89PNG\r\n\x1a\n") and kind == b"IEND" and at == len(data)


def damaged(sentence: str, remedy: str = "") -> StorageDamaged:
    return StorageDamaged(sentence, remedy=f"Ask the administrator: {REPAIR}. {remedy}".strip())


def check_dataset(digest: str, head: bytes, facts: dict[str, Any]) -> None:
    """Raises StorageDamaged unless the arrays of a dataset are those of its digest."""
    what, remedy = f"The arrays of dataset {digest[:12]}", "Or delete the dataset and import it again."
    try:
        for fresh in (False, True):
            paths = {name: blobs.path(f"datasets/{digest}/{name}", fresh) for name in dataset_files(facts)}
            files = [(name, bytes.fromhex(sha256_of(path))) for name, path in paths.items()]
            if dataset_digest(head, files) == digest:
                return
    except FileNotFoundError:
        raise damaged(f"{what} are missing from the blob store.", remedy) from None
    raise damaged(f"{what} are damaged: the stored bytes are not those that were imported.", remedy)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file; one that has not changed since is not read again."""
    return _sha256(path, _mark(path))


def fault(seal: Seal, size: int, read: bool = True) -> str | None:
    """Why the blob of `seal` cannot be used, as far as can be seen without a download: "missing" or "damaged"."""
    found = blobs.size(seal.key)
    if found is None:
        return "missing"
    if found != size:
        return "damaged"
    if read and isinstance(blobs.store(), blobs.FolderStore) and not _intact(seal, blobs.path(seal.key)):
        return "damaged"
    return None


def _intact(seal: Seal, path: Path) -> bool:
    if not seal.head and not seal.tail:
        return sha256_of(path) == seal.digest
    return _matching(seal, path, _mark(path))


def _mark(path: Path) -> tuple[int, ...]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


@lru_cache(KNOWN_FILES)
def _sha256(path: Path, mark: tuple[int, ...]) -> str:
    with blobs.storage_errors(), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(KNOWN_FILES)
def _matching(seal: Seal, path: Path, mark: tuple[int, ...]) -> bool:
    with blobs.storage_errors(), path.open("rb") as file:
        return seal.matches(iter(lambda: file.read(blobs.CHUNK), b""))
