"""The sweeper: a loop in every front end and worker that takes lost jobs back and rings for those that wait.

It does no harm when many run, and any one of them is enough.
"""

import threading

import structlog
from sqlalchemy import Engine

from app.core.errors import AnamorphError
from app.core.jobs import cleanup as janitor
from app.core.jobs import state as jobs
from app.core.jobs import workers as presence
from app.core.jobs.idempotency import forget_old
from app.core.jobs.queue import notify
from app.core.settings import settings
from app.core.store import blobs
from app.core.store.database import engine, reading, transaction

log = structlog.get_logger(__name__)

TIDY_SECONDS = 600


def sweep_once(bind: Engine | None = None) -> int:
    """One round: how many jobs changed or were rung for. A ring the broker refuses is handed back and tried again."""
    with reading(bind) as conn:
        if not jobs.to_sweep(conn):
            return 0
    with transaction(bind, durable=False) as conn:
        changed = jobs.sweep(conn)
        rings = jobs.take_unannounced(conn)
    refused = _ring_all(rings)
    if refused:
        with transaction(bind, durable=False) as conn:
            jobs.give_rings_back(conn, refused)
    return changed + len(rings)


def _ring_all(rings: list[tuple[str, str]]) -> list[str]:
    """Notifies workers of jobs until the broker refuses; returns the ids that were not sent."""
    for index, (job_id, queue) in enumerate(rings):
        if not notify(job_id, queue):
            return [job_id for job_id, _ in rings[index:]]
    return []


def tidy(bind: Engine | None = None) -> None:
    """Forgets what nobody can ask for any more."""
    with transaction(bind, durable=False) as conn:
        forget_old(conn)
        presence.forget_gone(conn)
    blobs.store().tidy()
    janitor.clean(bind)


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
        rounds = 0
        while not self._stopping:
            try:
                sweep_once(self.bind or engine())
                if rounds % int(TIDY_SECONDS / settings().sweep_seconds) == 1:
                    tidy(self.bind or engine())
            except AnamorphError as error:
                log.warning("sweep_failed", error=error.detail)
            except Exception:
                log.exception("sweep_failed")
            rounds += 1
            self.wake_event.wait(settings().sweep_seconds)
            self.wake_event.clear()
