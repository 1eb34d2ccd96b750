"""What operations look at beside the model: datasets, what the model made of them, and what reports have fitted."""

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
from models.data import Columns
from models.evaluation.dataset_view import DatasetView
from models.operations.core.base import Operation, Params
from models.types import DataSpec, Fitted
from workers import codecs
from workers.data import open_dataset
from workers.inference.batching import LoadedModel
from workers.store.models import load_card, model_key, unpack

CALL_NUMBERS = 16_000_000
"""Numbers of images that a call may put through a network before it is answered: 20 000 digits, a second or two."""
KEPT_NUMBERS = 1 << 28
KEPT_BYTES = 256 << 20
STORED_ROWS = 256
"""Measurements of fewer images are quicker made anew than fetched."""


class MeasurementCache:
    """Measurements that models made of datasets, by name: in memory the latest used, the larger ones stored as well."""

    def __init__(self, limit_bytes: int):
        self.limit_bytes = limit_bytes
        self._rows: OrderedDict[str, Tensor] = OrderedDict()
        self._making: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: str, most: int, numbers: int, compute: Callable[[], Tensor]) -> Tensor:
        """The rows of `key`. Raises InvalidRequest where they are not there yet and cost more than `most` numbers."""
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        with making:  # however many ask at once, one computes
            try:
                rows = self._known(key)
                return self._made(key, most, numbers, compute) if rows is None else rows
            finally:
                with self._lock:
                    self._making.pop(key, None)

    def _known(self, key: str) -> Tensor | None:
        with self._lock:
            if key in self._rows:
                self._rows.move_to_end(key)
            return self._rows.get(key)

    def _made(self, key: str, most: int, numbers: int, compute: Callable[[], Tensor]) -> Tensor:
        try:
            rows = from_numpy(np.load(io.BytesIO(blobs.get(key)), allow_pickle=False))
        except FileNotFoundError:
            if numbers > most:
                raise InvalidRequest(
                    "The dataset is too large to be looked at while you wait.",
                    field="dataset",
                    remedy="Send 'Prefer: respond-async' once: the job keeps what later calls need. Or look at fewer"
                    " images where there is a parameter for it.",
                ) from None
            rows = compute()
            if len(rows) >= STORED_ROWS:
                with suppress(FileExistsError):  # named by what it follows from
                    blobs.put(key, codecs.encode_npy(rows))
        with self._lock:
            self._rows[key] = rows
            while len(self._rows) > 1 and sum(kept.nbytes for kept in self._rows.values()) > self.limit_bytes:
                self._rows.popitem(last=False)
        return rows


@lru_cache
def kept() -> MeasurementCache:
    """This process's measurements."""
    return MeasurementCache(KEPT_BYTES)


def attach_inputs(
    operation: Operation,
    loaded: LoadedModel,
    params: Params,
    most: int | None = None,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Gives an operation what it looks at beside the model, of which it may measure `most` numbers at once.

    `tick` is called on the way and may raise to stop.
    """
    if operation.dataset:
        operation.view = view(loaded, params.dataset, CALL_NUMBERS if most is None else most, tick)
    if operation.report is not None:
        operation.fitted = fitted(params.report)


def view(loaded: LoadedModel, reference: str | None, most: int, tick: Callable[[], None]) -> DatasetView:
    """The dataset `name@digest`, or the one that the model learned from. Raises NotFound when its arrays are gone."""
    name, _, digest = (reference or training_dataset_of(loaded.digest)).partition("@")
    try:
        opened = open_dataset(digest)
    except (NotFound, FileNotFoundError, ValueError):
        raise NotFound(
            f"The dataset {name} is gone.", field="dataset", remedy="Import it again, or name another dataset."
        ) from None
    sides = {"train": Columns(opened.train), "validation": Columns(opened.validation)}
    keep = partial(_keep, model_key(loaded.digest, f"beside/{digest}"), most)
    return DatasetView(loaded.model, name, DataSpec.from_facts(opened.facts), sides, keep, tick)


def training_dataset_of(digest: str) -> str:
    """`name@digest` of the dataset that a model learned from."""
    card = load_card(digest)
    if not card.get("dataset_digest"):
        raise InvalidRequest("This model does not say what it learned from.", field="dataset", remedy="Name a dataset.")
    return f"{card['dataset']}@{card['dataset_digest']}"


def fitted(key: str) -> Fitted:
    """What a report left under `key`. Raises NotFound."""
    try:
        return Fitted(*unpack(blobs.path(key)))
    except (FileNotFoundError, ValueError):
        raise NotFound("What this report has fitted is gone.", field="report", remedy="Make it again.") from None


def _keep(place: str, most: int, name: str, numbers: int, compute: Callable[[], Tensor]) -> Tensor:
    return kept().get(f"{place}/{name}.npy", most, numbers, compute)
