"""Tensors learned once per dataset, as blobs beside its arrays: shared by all trainings, deleted with the dataset."""

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO

import structlog
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from app.core.errors import AnamorphError
from app.core.settings import settings
from app.core.store import blobs
from workers.store.models import pack

log = structlog.get_logger(__name__)


WAIT_SECONDS = 0.1


class DatasetCache:
    """The cache of the dataset `digest`. `check_stop` is called while something is learned and may raise to stop."""

    def __init__(self, digest: str, tick: Callable[[], None] = lambda: None):
        self.prefix, self.check_stop = f"datasets/{digest}", tick

    def get(self, name: str) -> dict[str, Tensor] | None:
        """The tensors stored under `name`; None if there are none or they cannot be read."""
        try:
            return load(blobs.get(self._key(name)))
        except FileNotFoundError:
            return None
        except SafetensorError:
            log.warning("dataset_cache.damaged", key=self._key(name))
            blobs.delete_prefix(self._key(name))
            return None

    @contextmanager
    def learning(self, name: str) -> Iterator[None]:
        """Held by whoever learns `name`: other processes on this machine wait, and go on if it dies."""
        folder = settings().data_dir / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{self.prefix.rsplit('/', 1)[-1][:32]}-{name}").open("a") as file:
            while not _locked(file):
                self.check_stop()
                time.sleep(WAIT_SECONDS)
            yield  # the system releases the lock when the file is closed, also by a kill

    def put(self, name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Stores `tensors` and returns the stored ones: if several jobs store the same name, all use the first."""
        data = pack(tensors)
        if not blobs.exists(f"{self.prefix}/facts.json"):
            return load(data)  # the dataset was deleted meanwhile: store nothing
        with suppress(FileExistsError):
            try:
                blobs.put(self._key(name), data)
            except AnamorphError as error:  # a full disk must not lose the result
                log.warning("dataset_cache.not_kept", key=self._key(name), error=error.detail)
                return load(data)
        return self.get(name) or load(data)

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}.safetensors"


def _locked(file: IO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
