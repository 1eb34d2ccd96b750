"""Columns of a dataset split, and the order in which training sees them.

The arrays come from outside, often memory-mapped.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from models.seeds import derive
from models.types import Batch

IMAGES = frozenset({"images", "input", "target", "a", "b"})
DOMAINS = ("a", "b")
SEEN_BESIDE = {"a": ("a_labels",), "b": ()}
"""What a step sees of a domain besides its images; b_labels are for measuring alone."""


def as_float(images: Tensor) -> Tensor:
    """uint8 (B, C, H, W) -> float32 in [0, 1]; the division is exact for the round trip through 8 bits."""
    return images / 255.0


class Cache(Protocol):
    """Where what is learned about a dataset once is kept beside it, for every model of that dataset."""

    def get(self, name: str) -> dict[str, Tensor] | None:
        """What was kept under `name`."""

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
        # a mapped file as a plain array: indexing np.memmap itself makes a new map object each time
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
        """The same columns as tensors on `device`, so that a step copies nothing from the host."""
        moved = {name: torch.as_tensor(np.array(column)).to(device) for name, column in self.columns.items()}
        return Columns(moved, self.cache)

    def onto(self, device: torch.device | str) -> "Columns":
        """The same columns where they are, with rows handed out on `device`: for a set that is too large for it."""
        found = Columns(self.columns, self.cache)
        found.place = torch.device(device)
        return found

    def rows(self, indices: Tensor, names: list[str] | None = None) -> dict[str, Tensor]:
        """The rows at `indices` (int64) of the named columns (all by default), in the form a step takes."""
        return {name: self._take(name, indices) for name in (names or self.columns)}

    def head(self, count: int) -> dict[str, Tensor]:
        """The first `count` rows of every column: a fixed probe."""
        return {name: self._take(name, torch.arange(min(count, len(column)))) for name, column in self.columns.items()}

    def spaced(self, count: int) -> dict[str, Tensor]:
        """At most `count` rows of every column, evenly spaced over it: a fixed probe of sorted data too."""
        lengths = {name: len(column) for name, column in self.columns.items()}
        places = {size: torch.linspace(0, size - 1, min(count, size)).long() for size in set(lengths.values())}
        return {name: self._take(name, places[size]) for name, size in lengths.items()}

    def batches(self, size: int, limit: int | None = None) -> Iterator[dict[str, Tensor]]:
        """All rows in stored order, `size` at a time, at most `limit` rows; of a domain that has ended, none."""
        total = min(len(self), limit or len(self))
        for start in range(0, total, size):
            indices = torch.arange(start, min(start + size, total))
            yield {name: self._take(name, indices[indices < len(found)]) for name, found in self.columns.items()}

    def batch(self, seed: int, start: int, size: int) -> Batch:
        """The mini-batch of images number start .. start+size of an endless run of reshuffled epochs."""
        found: dict[str, Tensor] = {}
        domains = [[name, *SEEN_BESIDE[name]] for name in DOMAINS]
        for group in domains if "a" in self.columns else [list(self.columns)]:
            indices = self._indices(seed, group[0], len(self.columns[group[0]]), start, size)
            found |= self.rows(indices, [name for name in group if name in self.columns])
        return found

    def _indices(self, seed: int, group: str, count: int, start: int, size: int) -> Tensor:
        taken = []
        while size:
            epoch, offset = divmod(start, count)
            part = self._order(seed, group, count, epoch)[offset : offset + size]
            taken.append(part)
            start, size = start + len(part), size - len(part)
        return taken[0] if len(taken) == 1 else torch.cat(taken)

    def _order(self, seed: int, group: str, count: int, epoch: int) -> Tensor:
        """The permutation of one epoch, a function of (seed, epoch): a resumed run needs no sampler state."""
        cached = self._orders.get((seed, group))
        if cached is None or cached[0] != epoch:
            order = np.random.Generator(np.random.Philox(derive(seed, "order", group, epoch))).permutation(count)
            cached = self._orders[seed, group] = epoch, torch.from_numpy(order)
        return cached[1]

    def _take(self, name: str, indices: Tensor) -> Tensor:
        column = self.columns[name]
        if isinstance(column, Tensor):
            rows = column[indices.to(column.device)]
        else:
            rows = torch.from_numpy(np.ascontiguousarray(column[indices.numpy()]))
        if self.place is not None:
            rows = rows.to(self.place)  # as bytes, a quarter of the floats
        if name in IMAGES:
            return as_float(rows)
        return rows.long() if name == "masks" else rows
