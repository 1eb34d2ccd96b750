"""A look at the workers every second: whether anybody answers calls, and whether calls went down with somebody."""

import asyncio
from contextlib import suppress

import structlog
from anyio.to_thread import run_sync

from app.core.calls.client import CallClient
from app.core.errors import AnamorphError, WorkerLost
from app.core.jobs import workers as presence
from app.core.store.database import reading

SECONDS = 1.0
log = structlog.get_logger(__name__)


class Watch:
    """One per app. `queues` says for each queue which workers were heard of lately; None before the first look."""

    def __init__(self, calls: CallClient):
        self.calls = calls
        self.queues: dict[str, frozenset[str]] | None = None
        self._task: asyncio.Task | None = None
        self._over = asyncio.Event()

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Lets a look that has begun end: its thread holds a connection, which a cancelled task would leave behind."""
        self._over.set()
        if self._task:
            await self._task

    def workers(self, queue: str) -> frozenset[str]:
        return (self.queues or {}).get(queue, frozenset())

    def expects_answers(self) -> bool:
        """Whether somebody may answer a call."""
        return self.queues is None or bool(self.workers("infer"))

    def insist_on_inference(self) -> None:
        """Raises WorkerLost when nobody would answer a call; nobody has to wait for a deadline to learn that."""
        if not self.expects_answers():
            raise WorkerLost("No inference worker is running just now.", retry_after=3)

    async def look(self) -> None:
        """Sends again what may have gone down with a worker, as soon as there is another."""
        before, known = self.workers("infer"), self.queues is not None
        self.queues = await run_sync(_by_queue)
        after = self.workers("infer")
        if known and after and after != before:
            log.info("watch.workers_changed", before=len(before), after=len(after))
            await self.calls.recover()

    async def _run(self) -> None:
        while not self._over.is_set():
            try:
                await self.look()
            except AnamorphError as error:
                log.warning("watch.blind", error=error.detail)
            except Exception:
                log.exception("watch.blind")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), SECONDS)


def _by_queue() -> dict[str, frozenset[str]]:
    with reading() as conn:
        workers = presence.fresh(conn)
    queues = {queue for worker in workers for queue in worker["queues"]}
    return {queue: frozenset(worker["id"] for worker in workers if queue in worker["queues"]) for queue in queues}
