"""A place of its own for a benchmark, and clocks."""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from app.core.settings import settings
from app.core.store import blobs, database
from app.core.store.database import migrate


@contextmanager
def own_place() -> Iterator[None]:
    """Settings, database and blobs in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="anamorph-bench-") as folder:
        os.environ["ANAMORPH_DATA_DIR"] = folder
        for cache in (settings, blobs.store, database.engine):
            cache.cache_clear()
        migrate()
        yield
        database.engine().dispose()


@dataclass(frozen=True)
class Rate:
    """Images per second of the clock and of this process's computing; the second is steady on a busy machine."""

    wall: float
    cpu: float


class Stopwatch:
    """Starts when it is made."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def rate(self, images: int) -> Rate:
        return Rate(images / (time.perf_counter() - self.wall), images / (time.process_time() - self.cpu))
