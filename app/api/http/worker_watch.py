"""Looks at the workers every second: whether calls can be answered, and which must be sent again."""

import asyncio
from contextlib import suppress

import structlog
from anyio.to_thread import run_sync

from app.core.calls.client import CallClient
from app.core.errors import AnamorphError
from app.core.jobs import workers
from app.core.store.database import reading

SECONDS = 1.0
log = structlog.get_logger(__name__)


class WorkerWatch:
    """One per app. `queues` has the ids of the live workers of each queue; None before the first look."""

    def __init__(self, calls: CallClient):
        self.calls = calls
        self.queues: dict[str, frozenset[str]] | None = None
        self._task: asyncio.Task | None = None
        self._over = asyncio.Event()

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Waits for the look in progress: its thread holds a database connection, which a cancelled task would leak."""
        self._over.set()
        if self._task:
            await self._task

    def workers(self, queue: str) -> frozenset[str]:
        return (self.queues or {}).get(queue, frozenset())

    async def check_workers(self) -> None:
        """Reads the live workers. When those for inference have changed, sends the calls in flight again."""
        before, first = self.workers("infer"), self.queues is None
        self.queues = await run_sync(_by_queue)
        after = self.workers("infer")
        self.calls.has_workers = bool(after)
        if not first and after and after != before:
            log.info("watch.workers_changed", before=len(before), after=len(after))
            await self.calls.recover()

    async def _run(self) -> None:
        while not self._over.is_set():
            try:
                await self.check_workers()
            except AnamorphError as error:
                log.warning("watch.failed", error=error.detail)
            except Exception:
                log.exception("watch.failed")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), SECONDS)


def _by_queue() -> dict[str, frozenset[str]]:
    with reading() as conn:
        live = workers.fresh(conn)
    queues = {queue for worker in live for queue in worker["queues"]}
    return {queue: frozenset(worker["id"] for worker in live if queue in worker["queues"]) for queue in queues}
