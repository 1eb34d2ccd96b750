"""Training batches of a dataset that stays on the host, read and copied to the device before they are asked for."""

import contextlib
import threading
from queue import Full, Queue
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.data import Columns
from models.types import Batch

AHEAD = 2
"""Batches that wait for the training, besides the one that is being read."""


class Place(NamedTuple):
    """Where a batch begins in the order of the training `seed`, and its size."""

    seed: int
    start: int
    size: int


class Prefetched(Columns):
    """Columns whose training batches come from a thread that reads the next ones.

    On CUDA the thread pins them and copies them on a stream of its own, so that reading and copying overlap with the
    updates. The batches are those of `Columns.batch`; the next one is expected as far on as the last one was, and one
    out of order starts the thread anew. `close` ends it.
    """

    def __init__(self, columns: Columns, device: torch.device | str):
        super().__init__(columns.columns, columns.cache)
        self.place = torch.device(device)
        self._source = _Pinned(columns.columns)  # the thread knows this one only, so that it does not keep the other
        self._source.place = self.place
        self._last: Place | None = None
        self._reader: _Reader | None = None

    def batch(self, seed: int, start: int, size: int) -> Batch:
        wanted, last = Place(seed, start, size), self._last
        if self._reader is None or self._reader.expected != wanted:
            follows = last is not None and (last.seed, last.size) == (seed, size) and start > last.start
            self.close()
            self._reader = _Reader(self._source, wanted, start - last.start if follows else size)
        self._last = wanted
        try:
            return self._reader.next()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the thread and frees what it has read."""
        if self._reader is not None:
            self._reader.stop()
        self._reader = None

    def __del__(self) -> None:
        self.close()


class _Pinned(Columns):
    def _move(self, rows: Tensor) -> Tensor:
        return (rows.pin_memory() if self.place.type == "cuda" else rows).to(self.place, non_blocking=True)


class _Reader(threading.Thread):
    """Reads the batch at `first` and those that follow, each `stride` images further on."""

    def __init__(self, source: Columns, first: Place, stride: int):
        super().__init__(name="prefetch", daemon=True)
        self.source, self.device, self.expected, self.stride = source, source.place, first, stride
        self.ready: Queue[tuple[Any, Any]] = Queue(AHEAD)
        self.stopped = threading.Event()
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.start()

    def next(self) -> Batch:
        """The expected batch. Raises what reading it has raised."""
        batch, copied = self.ready.get()
        if isinstance(batch, BaseException):
            raise batch
        if copied is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(copied)
            for column in batch.values():
                column.record_stream(current)  # its memory is not used again before the update has read it
        self.expected = self._after(self.expected)
        return batch

    def stop(self) -> None:
        self.stopped.set()
        self.join()

    def run(self) -> None:
        place = self.expected
        with torch.cuda.stream(self.stream) if self.stream else contextlib.nullcontext():
            while not self.stopped.is_set():
                try:
                    batch = self.source.batch(*place)
                except BaseException as error:
                    self._put((error, None))
                    return
                self._put((batch, self.stream.record_event() if self.stream else None))
                place = self._after(place)

    def _put(self, item: tuple[Any, Any]) -> None:
        while not self.stopped.is_set():
            with contextlib.suppress(Full):
                return self.ready.put(item, timeout=0.1)

    def _after(self, place: Place) -> Place:
        return place._replace(start=place.start + self.stride)
