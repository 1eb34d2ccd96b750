"""Blobs: immutable bytes under keys that the service makes, in a folder (`file://`) or an object store (`s3://`).

In a folder a blob is written to a temporary file, synced and linked, so that it is complete or absent after a crash.
"""

import builtins
import errno
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import obstore
from obstore import exceptions
from obstore.store import from_url

from app.core.errors import StorageDamaged, StorageFull, Unavailable
from app.core.settings import settings

SEGMENT = re.compile(r"[A-Za-z0-9_@+-][A-Za-z0-9._@+-]{0,199}")
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}
CHUNK = 4 << 20
SINGLE_PUT = 64 << 20  # larger objects go up in parts, which S3 cannot make create-only


def checked(key: str) -> str:
    if not all(SEGMENT.fullmatch(segment) for segment in key.split("/")):
        raise ValueError(f"{key!r} is not a blob key: segments of letters, digits and ._@+-, joined by '/'.")
    return key


@contextmanager
def storage_errors() -> Iterator[None]:
    """Translates failures of a disk into errors for clients; an absent or existing file stays an OSError."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise StorageFull("The blob store has no space left.", remedy="Free disk space and retry.") from error
        if error.errno in FORBIDDEN:
            what = "on a read-only file system" if error.errno == errno.EROFS else "not accessible to this process"
            remedy = "The administrator must make the data folder readable and writable for the service."
            raise Unavailable(f"The blob store is {what}.", remedy=remedy, retry_after=30) from error
        if error.errno == errno.EIO:
            remedy = "The administrator should check the disk, then run `anamorph doctor --blobs`."
            raise StorageDamaged("The disk of the blob store reports an error.", remedy=remedy) from error
        raise


class FolderStore:
    def __init__(self, root: Path):
        self.root = root
        self.tmp = root / ".tmp"

    def put(self, key: str, data: bytes | Path, create_only: bool = True) -> None:
        target = self.root / checked(key)
        with storage_errors():
            self.tmp.mkdir(parents=True, exist_ok=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.tmp, delete=False) as file:
                try:
                    self._fill(file, data)
                    os.link(file.name, target) if create_only else os.replace(file.name, target)
                finally:
                    with suppress(FileNotFoundError):
                        os.unlink(file.name)
            _sync_folder(target.parent)

    @staticmethod
    def _fill(file, data: bytes | Path) -> None:
        if isinstance(data, Path):
            with data.open("rb") as source:
                shutil.copyfileobj(source, file, 1 << 20)
        else:
            file.write(data)
        file.flush()
        os.fchmod(file.fileno(), 0o644)
        os.fsync(file.fileno())

    def get(self, key: str) -> bytes:
        with storage_errors():
            return (self.root / checked(key)).read_bytes()

    def path(self, key: str, fresh: bool = False) -> Path:
        path = self.root / checked(key)
        if not path.is_file():
            raise FileNotFoundError(errno.ENOENT, "There is no blob", key)
        return path

    def chunks(self, key: str) -> Iterator[bytes]:
        with storage_errors(), self.path(key).open("rb") as file:
            while data := file.read(CHUNK):
                yield data

    def size(self, key: str) -> int | None:
        with suppress(FileNotFoundError):
            return self.path(key).stat().st_size
        return None

    def exists(self, key: str) -> bool:
        return (self.root / checked(key)).is_file()

    def delete_prefix(self, prefix: str) -> None:
        """Removes the blob `prefix` and everything under `prefix/`."""
        path = self.root / checked(prefix.rstrip("/"))
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def tidy(self, age_seconds: float = 86400) -> None:
        """Deletes unfinished files of processes that were killed."""
        for file in self.tmp.glob("*"):
            with suppress(FileNotFoundError):
                if file.stat().st_mtime < time.time() - age_seconds:
                    file.unlink()

    def list(self, prefix: str) -> builtins.list[tuple[str, int]]:
        return sorted(self.walk(prefix))

    def walk(self, prefix: str) -> Iterator[tuple[str, int]]:
        for at, _, names in os.walk(self.root / checked(prefix.rstrip("/"))):
            for name in names:
                with suppress(FileNotFoundError):  # deleted meanwhile
                    yield str((Path(at) / name).relative_to(self.root)), (Path(at) / name).stat().st_size


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _object_errors(key: str) -> Iterator[None]:
    try:
        yield
    except exceptions.AlreadyExistsError as error:
        raise FileExistsError(errno.EEXIST, "The blob exists already", key) from error
    except exceptions.NotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, "There is no blob", key) from error
    except exceptions.BaseError as error:
        raise Unavailable("The object store does not answer.", retry_after=5) from error


class ObjectStore:
    """S3 and its kin; credentials, region and endpoint come from the usual `AWS_*` variables."""

    def __init__(self, url: str, cache: Path, cache_bytes: int):
        self.store = from_url(url)
        self.cache, self.cache_bytes = cache, cache_bytes

    def put(self, key: str, data: bytes | Path, create_only: bool = True) -> None:
        size = data.stat().st_size if isinstance(data, Path) else len(data)
        single = size <= SINGLE_PUT
        if create_only and not single and self.exists(key):
            raise FileExistsError(errno.EEXIST, "The blob exists already", key)
        mode = "create" if create_only and single else "overwrite"
        with _object_errors(key):
            obstore.put(self.store, checked(key), data, mode=mode, use_multipart=not single)
        if not create_only:
            (self.cache / key).unlink(missing_ok=True)

    def get(self, key: str) -> bytes:
        with _object_errors(key):
            return bytes(obstore.get(self.store, checked(key)).bytes())

    def path(self, key: str, fresh: bool = False) -> Path:
        """A local copy of the (immutable) blob; the least recently used copies make room."""
        path = self.cache / checked(key)
        if path.is_file() and not fresh:
            os.utime(path)
            return path
        with storage_errors(), _object_errors(key):
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".tmp-", delete=False) as file:
                try:
                    for chunk in obstore.get(self.store, key).stream(min_chunk_size=8 << 20):
                        file.write(chunk)
                    file.flush()
                    os.replace(file.name, path)
                finally:
                    Path(file.name).unlink(missing_ok=True)
        self._make_room(path)
        return path

    def _make_room(self, newest: Path) -> None:
        """Deletes the oldest copies above the size of the cache; processes that have mapped one keep it."""
        files = [Path(at) / name for at, _, names in os.walk(self.cache) for name in names]
        stats = sorted(((file.stat(), file) for file in files if file.exists()), key=lambda pair: pair[0].st_mtime)
        total = sum(stat.st_size for stat, _ in stats)
        for stat, file in stats:
            if total <= self.cache_bytes:
                return
            if file != newest:
                file.unlink(missing_ok=True)
                total -= stat.st_size

    def chunks(self, key: str) -> Iterator[bytes]:
        with _object_errors(key):
            for chunk in obstore.get(self.store, checked(key)).stream(min_chunk_size=CHUNK):
                yield bytes(chunk)

    def size(self, key: str) -> int | None:
        try:
            with _object_errors(key):
                return obstore.head(self.store, checked(key))["size"]
        except FileNotFoundError:
            return None

    def exists(self, key: str) -> bool:
        return self.size(key) is not None

    def delete_prefix(self, prefix: str) -> None:
        """Removes the blob `prefix` and everything under `prefix/`."""
        keys = [key for key, _ in self.list(prefix)] or [prefix.rstrip("/")]
        with suppress(FileNotFoundError), _object_errors(prefix):
            obstore.delete(self.store, keys)
        shutil.rmtree(self.cache / prefix, ignore_errors=True)

    def tidy(self, age_seconds: float = 86400) -> None:
        """Does nothing: an unfinished upload never becomes an object."""

    def list(self, prefix: str) -> builtins.list[tuple[str, int]]:
        return sorted(self.walk(prefix))

    def walk(self, prefix: str) -> Iterator[tuple[str, int]]:
        with _object_errors(prefix):
            for page in obstore.list(self.store, prefix=checked(prefix.rstrip("/")) + "/"):
                yield from ((meta["path"], meta["size"]) for meta in page)


def open_store(url: str, cache: Path, cache_bytes: int) -> FolderStore | ObjectStore:
    parts = urlsplit(url)
    if parts.scheme == "file":
        return FolderStore(Path(unquote(parts.path)))
    if parts.scheme in ("s3", "s3a", "gs", "az"):
        return ObjectStore(url, cache, cache_bytes)
    raise ValueError(f"BLOBS_URL starts with {parts.scheme!r}; file:///folder and s3://bucket/prefix are supported.")


@lru_cache
def store() -> FolderStore | ObjectStore:
    options = settings()
    return open_store(options.blobs_url, options.data_dir / "blob-cache", options.blob_cache_bytes)


def put(key: str, data: bytes | Path, create_only: bool = True) -> None:
    """Stores bytes or a file. `create_only` raises FileExistsError for a key that is taken."""
    store().put(key, data, create_only)


def get(key: str) -> bytes:
    return store().get(key)


def path(key: str, fresh: bool = False) -> Path:
    """A local file with the blob's bytes, to be read or mapped into memory, never written. `fresh`: no cached one."""
    return store().path(key, fresh)


def chunks(key: str) -> Iterator[bytes]:
    """The bytes of a blob, piece by piece, from the store itself."""
    return store().chunks(key)


def size(key: str) -> int | None:
    """The bytes of a blob; None if there is none."""
    return store().size(key)


def exists(key: str) -> bool:
    return store().exists(key)


def delete_prefix(prefix: str) -> None:
    store().delete_prefix(prefix)


def list(prefix: str) -> builtins.list[tuple[str, int]]:
    """(key, bytes) of every blob under `prefix/`, sorted by key."""
    return store().list(prefix)


def walk(prefix: str) -> Iterator[tuple[str, int]]:
    """The same one by one, in any order."""
    return store().walk(prefix)
