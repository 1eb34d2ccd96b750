"""Slots: a worker runs a training on each of its devices and one job of each other queue, each in a process of its own.

The table decides which job is next; a message only wakes the slot. Nothing here imports torch.
"""

import os
import threading
from collections.abc import Sequence

import structlog
from sqlalchemy import Engine

from app.core.errors import AnamorphError
from app.core.jobs import state as jobs
from app.core.settings import settings
from app.core.store.database import reading, transaction
from workers.jobs.device_pool import DevicePool
from workers.jobs.spare import Spares
from workers.jobs.watch import COMMAND, ProcessWatch, shared_environment

log = structlog.get_logger(__name__)


LOOK_SECONDS = 1
"""How often a slot whose training waits for devices looks whether it is still the next one."""


class Slot(threading.Thread):
    """Claims and runs jobs of one queue until `stop`."""

    command: Sequence[str] = COMMAND

    def __init__(self, queue: str, worker: str, bind: Engine | None = None, pool: DevicePool | None = None):
        super().__init__(name=f"slot-{queue}", daemon=True)
        self.queue, self.worker, self.bind, self.pool = queue, worker, bind, pool or DevicePool()
        self.spares = Spares(self.command)
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
                while not self.stopping.is_set() and (found := self._next()):
                    claim, devices = found
                    try:
                        watch = ProcessWatch(claim, self.bind, self.command, devices, self.spares)
                        watch.until_ended(self.stopping, self._keep_spare)
                    finally:
                        self.pool.release(claim.id)
            except AnamorphError as error:
                log.warning("slot_waits", queue=self.queue, error=error.detail)
            except Exception:
                log.exception("slot_failed", queue=self.queue)
            self._keep_spare()
            # also looks at intervals: an idle slot finds work without the broker
            self._wake_event.wait(settings().sweep_seconds)
            self._wake_event.clear()
        self.spares.close()

    def _keep_spare(self) -> None:
        """Has a process ready for the next training, also while one runs."""
        if self.queue == "train" and settings().warm_start and not self.stopping.is_set():
            self.spares.keep({**os.environ, **shared_environment(self.queue)})

    def _next(self) -> tuple[jobs.Claim, list[str]] | None:
        """The next job, and its devices. Waits while a training is due and has too few free devices."""
        if self.queue == "train":
            with self.pool.choosing:
                return self._next_training()
        with reading(self.bind) as conn:
            if jobs.next_due(conn, self.queue) is None:
                return None
        with transaction(self.bind) as conn:
            claim = jobs.claim_oldest(conn, self.queue, self.worker)
        return claim and (claim, self.pool.share(claim.id))

    def _next_training(self) -> tuple[jobs.Claim, list[str]] | None:
        most = len(self.pool)
        while not self.stopping.is_set():
            with reading(self.bind) as conn:
                due = jobs.next_due(conn, self.queue, most)
                needed = jobs.devices_needed(conn, due) if due else 0
            if due is None:
                return None
            if not (free := self.pool.wait_free(needed, LOOK_SECONDS)):
                continue  # it may have been canceled
            with transaction(self.bind) as conn:
                claim = jobs.claim_oldest(conn, self.queue, self.worker, devices=free, most_devices=most)
            if claim is not None:
                devices = free[: claim.spec.get("devices", 1)]
                self.pool.take(devices, claim.id)
                return claim, devices
        return None
