"""Uploads: large bodies are hashed, counted and written to a blob as they arrive, never whole in memory."""

import hashlib
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from anyio.to_thread import run_sync
from fastapi import Request
from starlette.requests import ClientDisconnect

from app.core.errors import InvalidDataset, InvalidRequest, UnsupportedMedia
from app.core.settings import settings
from app.core.store import blobs
from app.core.store.blobs import storage_errors
from app.core.store.database import new_id

PIECE = 1 << 20
ZIP, NPZ = "zip", "npz"
KINDS = {
    "application/zip": None,
    "application/x-zip-compressed": None,
    "application/x-npz": NPZ,
    "application/octet-stream": None,
    "application/x-www-form-urlencoded": None,  # the default of curl
    "": None,
}


@dataclass(frozen=True)
class Upload:
    """`key` of the blob, SHA-256 and size of its bytes, `format` of the archive: zip or npz."""

    key: str
    sha256: str
    size: int
    format: str


async def receive(request: Request) -> Upload:
    """Stores the body of the request. The caller deletes the blob if no job is accepted."""
    media = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media not in KINDS or request.headers.get("content-encoding", "identity") != "identity":
        raise UnsupportedMedia(
            "The body is not a zip or npz file.",
            remedy="Send the file as the body: curl --data-binary @images.zip -H 'Content-Type: application/zip' ...",
        )
    with incoming() as file:
        digest, size = await _write(request, file)
        file.flush()
        kind = _kind(Path(file.name), media)
        upload = Upload(f"uploads/{new_id()}", digest, size, kind)
        await run_sync(blobs.put, upload.key, Path(file.name))
    return upload


def forget_stale() -> None:
    """Deletes files older than a day: unfinished uploads of processes that were killed."""
    for path in _folder().glob("*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > 86400:
                path.unlink()


def _folder() -> Path:
    return settings().data_dir / "incoming"


@contextmanager
def incoming():
    """An empty temporary file, deleted at the end of the block."""
    folder = _folder()
    with storage_errors():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            yield file


async def _write(request: Request, file) -> tuple[str, int]:
    digest, size, pieces = hashlib.sha256(), 0, bytearray()

    def flush() -> None:
        digest.update(pieces)
        file.write(pieces)

    try:
        async for chunk in request.stream():
            pieces += chunk
            size += len(chunk)
            if len(pieces) >= PIECE:
                await run_sync(flush)
                pieces.clear()
    except ClientDisconnect:
        raise InvalidRequest("The connection broke during the upload.") from None
    await run_sync(flush)
    return digest.hexdigest(), size


def _kind(path: Path, media: str) -> str:
    """zip or npz: an npz is a zip whose members are .npy files, so its first member decides."""
    with path.open("rb") as file:
        head = file.read(30 + 256)
    if not head:
        raise InvalidDataset(
            "The body is empty.", remedy="Send the archive as the body: curl --data-binary @images.zip ..."
        )
    if not head.startswith(b"PK"):
        raise InvalidDataset("The file is neither a zip nor an npz file.", remedy="Pack the images into a zip.")
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    return NPZ if KINDS[media] == NPZ or name.endswith(b".npy") else ZIP
