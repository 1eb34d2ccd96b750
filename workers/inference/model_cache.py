"""Models kept in memory between calls; above a limit in bytes the least recently used are dropped."""

import threading
from collections import OrderedDict
from concurrent.futures import Future

import structlog
import torch

from app.core.settings import settings
from models import deadline
from models.imported.opaque import Opaque
from models.operations.core.base import Operation
from models.registry import operations
from models.types import ModelError
from workers.inference.batching import LoadedModel, plan_for
from workers.inference.onnx_executor import by_runtime
from workers.store.models import load_model

OVERHEAD = 1.5
"""Estimated memory of a model as a multiple of its weights: activations included."""
log = structlog.get_logger(__name__)


class ModelCache:
    """Loads models by digest; concurrent requests for one model load it once."""

    def __init__(self, limit_bytes: int, device: torch.device):
        self.limit_bytes, self.device = limit_bytes, device
        self._models: OrderedDict[str, LoadedModel] = OrderedDict()
        self._loading: dict[str, Future] = {}
        self._lock = threading.Lock()

    def __contains__(self, digest: str) -> bool:
        """Whether the model is in memory."""
        return digest in self._models

    def get(self, digest: str) -> LoadedModel:
        """The model, from memory or from the blob store. Raises NotFound."""
        with self._lock:
            if digest in self._models:
                self._models.move_to_end(digest)
                return self._models[digest]
            mine = digest not in self._loading
            future = self._loading.setdefault(digest, Future())
        if mine:
            self._load(digest, future)
            return future.result()
        with deadline.paused():  # another thread loads it, and may need the turn
            return future.result()

    @property
    def digests(self) -> list[str]:
        """The digests of the models in memory, the least recently used first."""
        with self._lock:
            return list(self._models)

    def _load(self, digest: str, future: Future) -> None:
        try:
            loaded = self._warm(digest)
        except BaseException as error:
            with self._lock:
                del self._loading[digest]
            future.set_exception(error)
            return
        with self._lock:
            self._models[digest] = loaded
            del self._loading[digest]
            self._make_room()
        future.set_result(loaded)

    def _warm(self, digest: str) -> LoadedModel:
        with deadline.paused():
            model = load_model(digest).to(self.device)
        weights = sum(tensor.nbytes for tensor in model.state_dict().values())
        supported = {name: operation for name, operation in operations().items() if operation.fits(type(model))}
        loaded = LoadedModel(digest, model, int(weights * OVERHEAD), supported)
        if settings().executor == "onnx" and self.device.type == "cpu":
            with deadline.paused():
                loaded.forward = by_runtime(digest, model)
            loaded.bytes += weights  # the runtime holds weights of its own
        foreign = any(isinstance(part, Opaque) for part in model.modules())  # its first caller waits for its trials
        for operation in dict.fromkeys(supported.values()):  # once for all names
            if not foreign and not operation.dataset and operation.report is None:
                warm(loaded, operation())
        log.info("model.loaded", digest=digest, family=model.name, bytes=loaded.bytes)
        return loaded

    def _make_room(self) -> None:
        """Call it under the lock. Keeps the newest model even when it alone is too large: it is about to be used."""
        while len(self._models) > 1 and sum(model.bytes for model in self._models.values()) > self.limit_bytes:
            digest, _ = self._models.popitem(last=False)
            log.info("model.evicted", digest=digest)


def warm(loaded: LoadedModel, operation: Operation) -> None:
    """Plans batches before the first call; this also selects kernels and allocates memory."""
    model = loaded.model
    inputs = {"images": torch.rand(2, *model.data.shape), "nothing": None}
    if operation.takes in ("latents", "either"):
        inputs[operation.takes] = torch.randn(2, model.latent_dim)
    try:
        params = operation.Params()
        plan_for(loaded, operation, params, operation.rows(model, inputs[operation.takes], params))
    except ModelError:
        pass  # the operation needs parameters that only a request has
