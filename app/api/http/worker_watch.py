"""Looks at the inference workers every second: whether calls can be answered, and which must be sent again.

Workers say over the broker that they live, so that calls need no write to the database.
"""

import asyncio
import time
from contextlib import suppress
from typing import Any

import structlog

from app.core.calls.client import CallClient
from app.core.calls.messages import LIVE_SECONDS

SECONDS = 1.0
EMPTY_SECONDS = 3.0
"""A broker that was just lost may have started empty; workers write their keys each second."""
REPLACED_SECONDS = LIVE_SECONDS + 5
log = structlog.get_logger(__name__)


class WorkerWatch:
    """One per app. `workers` has what the live inference workers say, by id; None before the first look."""

    def __init__(self, calls: CallClient):
        self.calls = calls
        self.workers: dict[str, dict[str, Any]] | None = None
        self._lost_at = -EMPTY_SECONDS
        self._replaced: set[str] = set()
        self._replaced_at = 0.0
        self._task: asyncio.Task | None = None
        self._over = asyncio.Event()

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        self._over.set()
        if self._task:
            await self._task

    async def check_workers(self) -> None:
        """Reads the live workers. When they have changed, sends the calls in flight again."""
        live = await self.calls.live_workers()
        now = time.monotonic()
        if live is None:  # calls say themselves that the broker cannot be reached
            self._lost_at = now
            return
        if not live and self.workers and now < self._lost_at + EMPTY_SECONDS:
            return
        before, self.workers = self.workers, live
        self.calls.has_workers = bool(live)
        if before is None or not live or live.keys() == before.keys():
            return
        log.info("watch.workers_changed", before=len(before), after=len(live))
        if live.keys() - before.keys():
            self._replaced, self._replaced_at = set(before), now
        elif before.keys() - live.keys() <= self._replaced and now < self._replaced_at + REPLACED_SECONDS:
            return  # the key of a dead worker outlives its replacement's start, when its calls were sent again
        await self.calls.recover()

    @property
    def state(self) -> str:
        """`ok`, or what is wrong with the inference workers."""
        if not self.workers:
            return "none" if self.workers is not None else "ok"
        late = max(worker.get("late", 0.0) for worker in self.workers.values())
        return f"late for {late:.0f} s" if late >= 1 else "ok"

    async def _run(self) -> None:
        while not self._over.is_set():
            try:
                await self.check_workers()
            except Exception:
                log.exception("watch.failed")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), SECONDS)
