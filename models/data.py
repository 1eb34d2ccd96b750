"""Columns of a dataset split, and the order of training batches. Arrays may be memory-mapped files."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from models.seeds import derive
from models.types import Batch

IMAGES = frozenset({"images", "input", "target", "a", "b"})
DOMAINS = ("a", "b")
TRAINING_LABELS = {"a": ("a_labels",), "b": ()}
"""Columns of a domain in a training batch besides its images; b_labels are used in evaluation only."""


def as_float(images: Tensor) -> Tensor:
    """uint8 (B, C, H, W) -> float32 in [0, 1]; converting back to 8 bits is exact."""
    return images / 255.0


class Cache(Protocol):
    """Where what is learned about a dataset once is kept beside it, for every model of that dataset."""

    def get(self, name: str) -> dict[str, Tensor] | None:
        """What was kept under `name`."""

    def learning(self, name: str) -> AbstractContextManager[None]:
        """Held while `name` is learned: others who need it wait."""

    def put(self, name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keep `tensors`, unless somebody was faster; returns what is kept now."""

    def check_stop(self) -> None:
        """Called often while something is learned for the cache; may raise to stop."""


class Columns:
    """One split: named columns of equal length, or the two domains `a` and `b`, each of its own length.

    Columns are uint8 images (N, C, H, W), int64 labels, float32 targets or uint8 masks (N, H, W), as NumPy arrays
    (memory-mapped ones are read row by row) or as tensors resident on a device.
    """

    def __init__(self, columns: Mapping[str, Any], cache: Cache | None = None):
        # np.asarray of a memory-mapped file: indexing np.memmap itself makes a new map object each time
        self.columns = {
            name: column if isinstance(column, Tensor) else np.asarray(column) for name, column in columns.items()
        }
        self.cache = cache
        self.place: torch.device | None = None
        self._orders: dict[tuple[int, str], tuple[int, Tensor]] = {}

    def __len__(self) -> int:
        return max((len(column) for column in self.columns.values()), default=0)

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def to(self, device: torch.device | str) -> "Columns":
        """The columns as tensors on `device`, so that a step copies nothing from the host."""
        tensors = {name: torch.as_tensor(np.array(column)).to(device) for name, column in self.columns.items()}
        return Columns(tensors, self.cache)

    def onto(self, device: torch.device | str) -> "Columns":
        """The columns where they are, with batches moved to `device`: for a dataset too large for it."""
        view = Columns(self.columns, self.cache)
        view.place = torch.device(device)
        return view

    def rows(self, indices: Tensor, names: list[str] | None = None) -> dict[str, Tensor]:
        """The rows at `indices` (int64) of the named columns (default: all), converted as for a step."""
        return {name: self._take(name, indices) for name in (names or self.columns)}

    def head(self, count: int) -> dict[str, Tensor]:
        """The first `count` rows of every column."""
        return {name: self._take(name, torch.arange(min(count, len(column)))) for name, column in self.columns.items()}

    def spaced(self, count: int) -> dict[str, Tensor]:
        """At most `count` evenly spaced rows of every column, so that data sorted by class is represented."""
        return {name: self._take(name, places) for name, places in self._spaced(count).items()}

    def subset(self, count: int) -> "Columns":
        """At most `count` evenly spaced rows of every column, as stored and without the cache."""
        chosen = {name: places.numpy() for name, places in self._spaced(count).items()}
        view = Columns({name: column[chosen[name]] for name, column in self.columns.items()})
        view.place = self.place
        return view

    def _spaced(self, count: int) -> dict[str, Tensor]:
        lengths = {name: len(column) for name, column in self.columns.items()}
        places = {size: torch.linspace(0, size - 1, min(count, size)).long() for size in set(lengths.values())}
        return {name: places[size] for name, size in lengths.items()}

    def batches(self, size: int, limit: int | None = None) -> Iterator[dict[str, Tensor]]:
        """The first `limit` rows (default: all) in stored order, `size` at a time; a shorter domain ends earlier."""
        total = min(len(self), limit or len(self))
        for start in range(0, total, size):
            indices = torch.arange(start, min(start + size, total))
            yield {name: self._take(name, indices[indices < len(column)]) for name, column in self.columns.items()}

    def batch(self, seed: int, start: int, size: int) -> Batch:
        """Images start .. start + size - 1 of an endless sequence of shuffled epochs."""
        batch: dict[str, Tensor] = {}
        domains = [[name, *TRAINING_LABELS[name]] for name in DOMAINS]
        for group in domains if "a" in self.columns else [list(self.columns)]:
            indices = self._indices(seed, group[0], len(self.columns[group[0]]), start, size)
            batch |= self.rows(indices, [name for name in group if name in self.columns])
        return batch

    def _indices(self, seed: int, group: str, count: int, start: int, size: int) -> Tensor:
        parts = []
        while size:
            epoch, offset = divmod(start, count)
            part = self._order(seed, group, count, epoch)[offset : offset + size]
            parts.append(part)
            start, size = start + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _order(self, seed: int, group: str, count: int, epoch: int) -> Tensor:
        """The permutation of an epoch depends on (seed, epoch) only: a resumed training needs no sampler state."""
        cached = self._orders.get((seed, group))
        if cached is None or cached[0] != epoch:
            order = np.random.Generator(np.random.Philox(derive(seed, "order", group, epoch))).permutation(count)
            cached = self._orders[seed, group] = epoch, torch.from_numpy(order)
        return cached[1]

    def _move(self, rows: Tensor) -> Tensor:
        return rows.to(self.place)

    def close(self) -> None:
        """Frees what is kept ready for a training, once its last update is done."""

    def _take(self, name: str, indices: Tensor) -> Tensor:
        column = self.columns[name]
        if isinstance(column, Tensor):
            rows = column[indices.to(column.device)]
        else:
            rows = torch.from_numpy(np.ascontiguousarray(column[indices.numpy()]))
        if self.place is not None:
            rows = self._move(rows)  # as uint8, a quarter of the size
        if name in IMAGES:
            return as_float(rows)
        return rows.long() if name == "masks" else rows
