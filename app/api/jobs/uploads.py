"""Large bodies on their way to a blob: hashed, counted and written as they arrive, never whole in memory."""

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
    "application/x-www-form-urlencoded": None,  # what curl says when nobody tells it
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
    """The body of the request, stored. The caller deletes the blob if nothing comes of it."""
    media = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media not in KINDS or request.headers.get("content-encoding", "identity") != "identity":
        raise UnsupportedMedia(
            "A dataset comes as a zip or npz file, as the whole body.",
            remedy="curl --data-binary @images.zip -H 'Content-Type: application/zip' ...",
        )
    with incoming() as file:
        digest, size = await _write(request, file)
        file.flush()
        kind = _kind(Path(file.name), media)
        upload = Upload(f"uploads/{new_id()}", digest, size, kind)
        await run_sync(blobs.put, upload.key, Path(file.name))
    return upload


def forget_stale() -> None:
    """Deletes what a front that was killed left behind: nothing takes a day to arrive."""
    for path in _folder().glob("*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > 86400:
                path.unlink()


def _folder() -> Path:
    return settings().data_dir / "incoming"


@contextmanager
def incoming():
    """An empty file for what arrives; it goes when the block ends."""
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
        raise InvalidRequest("The upload broke off.") from None
    await run_sync(flush)
    return digest.hexdigest(), size


def _kind(path: Path, media: str) -> str:
    """An npz is a zip whose members are .npy files: the first one tells."""
    with path.open("rb") as file:
        head = file.read(30 + 256)
    if not head:
        raise InvalidDataset(
            "The body is empty.", remedy="Send the archive as the body: curl --data-binary @images.zip."
        )
    if not head.startswith(b"PK"):
        raise InvalidDataset("This is no zip and no npz file.", remedy="Pack the images into a zip.")
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    return NPZ if KINDS[media] == NPZ or name.endswith(b".npy") else ZIP
