"""The sweeper: a loop in every web front and worker that takes lost jobs back and notifies workers of queued ones.

Any number of them may run; one is enough.
"""

import threading

import structlog
from sqlalchemy import Engine

from app.core.errors import AnamorphError
from app.core.jobs import cleanup
from app.core.jobs import state as jobs
from app.core.jobs import workers as worker_rows
from app.core.jobs.idempotency import forget_old
from app.core.jobs.queue import notify
from app.core.machine import Clocks
from app.core.settings import settings
from app.core.store import blobs
from app.core.store.database import engine, now, reading, retried, transaction

log = structlog.get_logger(__name__)

TIDY_SECONDS = 600
BLIND_SECONDS = 5
"""Least time without a look at the leases after which they are renewed; also at least half a lease."""


def sweep_once(bind: Engine | None = None, clocks: Clocks | None = None) -> int:
    """One round. Returns how many jobs changed or were announced; what the broker refuses is announced again later.

    With `clocks`, leases that ran out while no sweeper could look are renewed instead.
    """
    with reading(bind) as conn:
        why = clocks and clocks.look(now(conn))
        if not why and not jobs.to_sweep(conn):
            return 0
    if why:
        renewed = retried(lambda conn: jobs.renew_leases(conn, why), bind, durable=False)
        log.warning("leases_renewed", why=why, jobs=renewed)
    changed, due = retried(lambda conn: (jobs.sweep(conn), jobs.take_unannounced(conn)), bind, durable=False)
    refused = _notify_all(due)
    if refused:
        with transaction(bind, durable=False) as conn:
            jobs.mark_unannounced(conn, refused)
    return changed + len(due)


def _notify_all(due: list[tuple[str, str]]) -> list[str]:
    """Notifies workers of jobs until the broker refuses; returns the ids that were not sent."""
    for index, (job_id, queue) in enumerate(due):
        if not notify(job_id, queue):
            return [job_id for job_id, _ in due[index:]]
    return []


def tidy(bind: Engine | None = None) -> None:
    """Deletes expired idempotency keys, rows of dead workers, and files that are no longer needed."""
    with transaction(bind, durable=False) as conn:
        forget_old(conn)
    with transaction(bind, durable=False) as conn:
        worker_rows.forget_gone(conn)
    blobs.store().tidy()
    cleanup.clean(bind)


class Sweeper(threading.Thread):
    """Set `wake_event` after each commit that queued a job: the notification is then sent at once, by this thread."""

    def __init__(self, bind: Engine | None = None):
        super().__init__(name="sweeper", daemon=True)
        self.bind = bind
        self.wake_event = threading.Event()
        self._stopping = False

    def stop(self) -> None:
        self._stopping = True
        self.wake_event.set()
        self.join(timeout=10)

    def run(self) -> None:
        rounds, clocks = 0, Clocks(max(BLIND_SECONDS, settings().lease_seconds / 2) + settings().sweep_seconds)
        while not self._stopping:
            try:
                sweep_once(self.bind or engine(), clocks)
                if rounds % int(TIDY_SECONDS / settings().sweep_seconds) == 1:
                    tidy(self.bind or engine())
            except AnamorphError as error:
                clocks.failed = True
                log.warning("sweep_failed", error=error.detail)
            except Exception:
                log.exception("sweep_failed")
            rounds += 1
            self.wake_event.wait(settings().sweep_seconds)
            self.wake_event.clear()
