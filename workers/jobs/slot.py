"""Slots: a worker runs one job of each of its queues at a time, each in a process of its own that it watches.

The table decides which job is next; a message only wakes the slot. Nothing here imports torch.
"""

import threading
from collections.abc import Sequence

import structlog
from sqlalchemy import Engine

from app.core.errors import AnamorphError
from app.core.jobs import state as jobs
from app.core.settings import settings
from app.core.store.database import reading, transaction
from workers.jobs.watch import COMMAND, ProcessWatch

log = structlog.get_logger(__name__)


class Slot(threading.Thread):
    """Claims and runs jobs of one queue until `stop`."""

    command: Sequence[str] = COMMAND

    def __init__(self, queue: str, worker: str, bind: Engine | None = None):
        super().__init__(name=f"slot-{queue}", daemon=True)
        self.queue, self.worker, self.bind = queue, worker, bind
        self.stopping = threading.Event()
        self._wake_event = threading.Event()

    def wake(self) -> None:
        """Looks for a job now, or after the present one."""
        self._wake_event.set()

    def stop(self) -> None:
        self.stopping.set()
        self._wake_event.set()

    def run(self) -> None:
        while not self.stopping.is_set():
            try:
                while not self.stopping.is_set() and (claim := self._next()):
                    ProcessWatch(claim, self.bind, self.command).until_ended(self.stopping)
            except AnamorphError as error:
                log.warning("slot_waits", queue=self.queue, error=error.detail)
            except Exception:
                log.exception("slot_failed", queue=self.queue)
            # also looks at intervals: an idle slot finds work without the broker
            self._wake_event.wait(settings().sweep_seconds)
            self._wake_event.clear()

    def _next(self) -> jobs.Claim | None:
        with reading(self.bind) as conn:
            if jobs.next_due(conn, self.queue) is None:
                return None
        with transaction(self.bind) as conn:
            return jobs.claim_oldest(conn, self.queue, self.worker)
