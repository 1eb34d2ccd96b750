"""The inputs of operations besides the request: datasets, measurements of a model on them, and fits of reports."""

import io
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial

import numpy as np
from torch import Tensor, from_numpy

from app.core.errors import InvalidRequest, NotFound
from app.core.store import blobs
from models import deadline
from models.data import Columns
from models.evaluation.dataset_view import DatasetView
from models.operations.core.base import Operation, Params
from models.types import DataSpec, ReportArtefact
from workers import codecs
from workers.data import open_dataset
from workers.inference.batching import LoadedModel
from workers.store.models import load_card, model_key, unpack

MAX_CALL_NUMBERS = 16_000_000
"""Numbers of images that a call may measure before it is answered: 20 000 digits, one or two seconds."""
MAX_JOB_NUMBERS = 1 << 28
"""The same for a job."""
CACHE_BYTES = 256 << 20
STORED_ROWS = 256
"""Measurements of fewer images are not stored: computing them is faster than fetching them."""


class MeasurementCache:
    """Measurements of models on datasets, by key: the recently used in memory, the larger ones also in the store."""

    def __init__(self, limit_bytes: int):
        self.limit_bytes = limit_bytes
        self._rows: OrderedDict[str, Tensor] = OrderedDict()
        self._computing: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: str, most: int, numbers: int, compute: Callable[[], Tensor]) -> Tensor:
        """The rows of `key`. Raises InvalidRequest if they must be computed and cost more than `most` numbers."""
        with self._lock:
            computing = self._computing.setdefault(key, threading.Lock())
        if not computing.acquire(blocking=False):  # of concurrent requests for a key, one computes
            with deadline.paused():
                computing.acquire()
        try:
            rows = self._in_memory(key)
            return self._load_or_compute(key, most, numbers, compute) if rows is None else rows
        finally:
            computing.release()
            with self._lock:
                self._computing.pop(key, None)

    def _in_memory(self, key: str) -> Tensor | None:
        with self._lock:
            if key in self._rows:
                self._rows.move_to_end(key)
            return self._rows.get(key)

    def _load_or_compute(self, key: str, most: int, numbers: int, compute: Callable[[], Tensor]) -> Tensor:
        try:
            rows = from_numpy(np.load(io.BytesIO(blobs.get(key)), allow_pickle=False))
        except FileNotFoundError:
            if numbers > most:
                raise InvalidRequest(
                    "The dataset is too large to be measured while you wait.",
                    field="dataset",
                    remedy="Add the header Prefer: respond-async once: the job stores what later calls need. Or use"
                    " fewer images, where the operation has such a parameter.",
                ) from None
            rows = compute()
            if len(rows) >= STORED_ROWS:
                with suppress(FileExistsError):  # the key determines the content
                    blobs.put(key, codecs.encode_npy(rows))
        with self._lock:
            self._rows[key] = rows
            while len(self._rows) > 1 and sum(each.nbytes for each in self._rows.values()) > self.limit_bytes:
                self._rows.popitem(last=False)
        return rows


@lru_cache
def measurements() -> MeasurementCache:
    """The measurements of this process."""
    return MeasurementCache(CACHE_BYTES)


def attach_inputs(
    operation: Operation,
    loaded: LoadedModel,
    params: Params,
    most: int | None = None,
    tick: Callable[[], None] = deadline.check,
) -> None:
    """Attaches the dataset and the report's fit that the operation needs; it may measure `most` numbers of images.

    `tick` is called on the way and may raise to stop.
    """
    if operation.dataset:
        operation.view = dataset_view(loaded, params.dataset, MAX_CALL_NUMBERS if most is None else most, tick)
    if operation.report is not None:
        operation.fitted = fitted(params.report)


def dataset_view(loaded: LoadedModel, reference: str | None, most: int, tick: Callable[[], None]) -> DatasetView:
    """The dataset `name@digest`, by default the one the model learned from. Raises NotFound if it was deleted."""
    name, _, digest = (reference or training_dataset_of(loaded.digest)).partition("@")
    try:
        data = open_dataset(digest)
    except (NotFound, FileNotFoundError, ValueError):
        raise NotFound(
            f"Dataset {name!r} was deleted.", field="dataset", remedy="Import it again, or choose another dataset."
        ) from None
    sides = {"train": Columns(data.train), "validation": Columns(data.validation)}
    cached = partial(_cached, model_key(loaded.digest, f"beside/{digest}"), most)
    return DatasetView(loaded.model, name, DataSpec.from_facts(data.facts), sides, cached, tick)


def training_dataset_of(digest: str) -> str:
    """`name@digest` of the dataset that a model learned from. Raises InvalidRequest if its card names none."""
    card = load_card(digest)
    if not card.get("dataset_digest"):
        raise InvalidRequest(
            "This model has no training dataset on record.",
            field="dataset",
            remedy="Set dataset to a dataset's name.",
        )
    return f"{card['dataset']}@{card['dataset_digest']}"


def fitted(key: str) -> ReportArtefact:
    """What a report fitted, from its file `key`. Raises NotFound."""
    try:
        return ReportArtefact(*unpack(blobs.path(key)))
    except (FileNotFoundError, ValueError):
        raise NotFound("The fit of this report was deleted.", field="report", remedy="Run the report again.") from None


def _cached(prefix: str, most: int, name: str, numbers: int, compute: Callable[[], Tensor]) -> Tensor:
    return measurements().get(f"{prefix}/{name}.npy", most, numbers, compute)
