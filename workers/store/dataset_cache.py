"""Tensors learned once per dataset, as blobs beside its arrays: shared by all trainings, deleted with the dataset."""

from collections.abc import Callable
from contextlib import suppress

import structlog
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from app.core.errors import AnamorphError
from app.core.store import blobs
from workers.store.models import pack

log = structlog.get_logger(__name__)


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
