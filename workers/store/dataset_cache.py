"""What was learned about a dataset once, in blobs beside its arrays: gone with it, shared by all who train on it."""

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
    """`tick` is called while something is learned and may raise to stop."""

    def __init__(self, digest: str, tick: Callable[[], None] = lambda: None):
        self.prefix, self.check_stop = f"datasets/{digest}", tick

    def get(self, name: str) -> dict[str, Tensor] | None:
        """What was kept under `name`, if it can be read."""
        try:
            return load(blobs.get(self._key(name)))
        except FileNotFoundError:
            return None
        except SafetensorError:
            log.warning("dataset_cache.damaged", key=self._key(name))
            blobs.delete_prefix(self._key(name))
            return None

    def put(self, name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keeps `tensors`; of several who learn the same at once the first is kept, and all go on with that."""
        data = pack(tensors)
        if not blobs.exists(f"{self.prefix}/facts.json"):
            return load(data)  # the dataset was deleted meanwhile: leave nothing behind
        with suppress(FileExistsError):
            try:
                blobs.put(self._key(name), data)
            except AnamorphError as error:  # a full disk is no reason to lose what was measured
                log.warning("dataset_cache.not_kept", key=self._key(name), error=error.detail)
                return load(data)
        return self.get(name) or load(data)

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}.safetensors"
