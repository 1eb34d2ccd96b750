"""Calls that wait in an inference worker: slow ones for a thread, others for their model; and who computes them."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any, Generic, Protocol, TypeVar

import structlog

log = structlog.get_logger(__name__)


class Executes(Protocol):
    """What a lane needs of the host. `turn`: of lane.py."""

    def execute(self, calls: list[dict[str, Any]], turn: Any) -> list[dict[str, Any]]: ...

    def missing(self, call: dict[str, Any]) -> str | None:
        """The digest of the model that must be loaded before this call."""

    def load(self, digest: str, turn: Any) -> None: ...

    def problem(self, error: Exception) -> dict[str, Any]: ...


class Waiting(Protocol):
    """What the queue looks at. `price`: predicted seconds of computation; `made`: when it came."""

    tenant: str
    price: float
    made: float


T = TypeVar("T", bound=Waiting)


class SlowQueue(Generic[T]):
    """Runs what is added in `threads` threads: tenants in turn, of one tenant the cheapest first.

    `seconds_of`: computation of a tenant so far. One tenant has at most half of the threads.
    """

    def __init__(self, threads: int, run: Callable[[T], None], seconds_of: Callable[[str], float]):
        self.threads, self.run, self.seconds_of = threads, run, seconds_of
        self.waiting: list[T] = []
        self.running: list[T] = []
        self._lock = Lock()
        self._pool = ThreadPoolExecutor(threads, "slow-calls")

    def add(self, item: T) -> None:
        with self._lock:
            self.waiting.append(item)
            self._start()

    def drop(self, unwanted: Callable[[T], bool]) -> list[T]:
        """Removes what waits and is unwanted, and returns it."""
        with self._lock:
            dropped = [item for item in self.waiting if unwanted(item)]
            self.waiting = [item for item in self.waiting if item not in dropped]
        return dropped

    def _start(self) -> None:
        most = max(1, self.threads // 2)
        while len(self.running) < self.threads:
            running = Counter(item.tenant for item in self.running)
            able = [item for item in self.waiting if running[item.tenant] < most]
            if not able:
                return
            item = min(able, key=lambda item: self._order(item, running))
            self.waiting.remove(item)
            self.running.append(item)
            self._pool.submit(self._run, item)

    def _order(self, item: T, running: Counter) -> tuple:
        return running[item.tenant], self.seconds_of(item.tenant), item.price, item.made

    def _run(self, item: T) -> None:
        try:
            self.run(item)
        except Exception:
            log.exception("slow_call.failed")
        finally:
            with self._lock:
                self.running.remove(item)
                self._start()


class LoadQueue:
    """Calls by the digest of the model they wait for, which `load` loads in a thread; it then takes the calls."""

    def __init__(self, threads: int, load: Callable[[str, list[dict]], None]):
        self.load = load
        self.calls: dict[str, list[dict[str, Any]]] = {}
        self._lock = Lock()
        self._pool = ThreadPoolExecutor(threads, "load-models")

    def add(self, digest: str, call: dict[str, Any]) -> None:
        with self._lock:
            calls = self.calls.setdefault(digest, [])
            calls.append(call)
            if len(calls) == 1:
                self._pool.submit(self._run, digest, calls)

    def take(self, digest: str) -> list[dict[str, Any]]:
        with self._lock:
            return self.calls.pop(digest)

    def _run(self, digest: str, calls: list[dict[str, Any]]) -> None:
        try:
            self.load(digest, calls)
        except Exception:
            log.exception("load.failed")
