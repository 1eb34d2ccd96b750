"""The sweeper's side of the state machine: takes lost jobs back, ends late ones, announces those that wait.

Any number of sweepers run at the same time. They lock rows in the order of their ids and skip rows that another holds.
"""

from sqlalchemy import ColumnElement, Connection, and_, case, or_, select, update

from app.core.errors import AttemptsExhausted, DeadlineExceeded
from app.core.jobs.queries import due
from app.core.jobs.statements import change, end, lock_some, queued
from app.core.store.database import clock
from app.core.store.tables import jobs

ROWS = 500
"""Most rows that one statement of a sweep changes; the next round takes the others."""


def sweep(conn: Connection) -> int:
    """Takes jobs back whose lease has expired, and ends those past their deadline. Returns how many changed."""
    lost = lock_some(conn, and_(jobs.c.state == "running", jobs.c.lease_until < clock()), ROWS)
    too_late = lock_some(conn, and_(jobs.c.state == "queued", jobs.c.deadline <= clock()), ROWS)
    return (_take_back(conn, lost) if lost else 0) + (_end_late(conn, too_late) if too_late else 0)


def _take_back(conn: Connection, ids: list[str]) -> int:
    expired = and_(jobs.c.id.in_(ids), jobs.c.state == "running")
    last = jobs.c.failures + 1 >= jobs.c.max_failures
    again = {"failures": jobs.c.failures + 1, "run_after": clock()}
    error = AttemptsExhausted(
        "The worker disappeared in each attempt to run the job.",
        remedy="Resume the training, or submit the job again. The worker may have too little memory for it.",
        cause="worker-lost",
    ).problem()
    ended = end(expired & last, "failed").values(error=error, failures=jobs.c.failures + 1)
    return (
        change(conn, end(expired & jobs.c.cancel_requested, "canceled"), "canceled", {"why": "worker-lost"})
        + change(conn, queued(expired & ~last).values(**again), "queued", {"why": "worker-lost"})
        + change(conn, ended, "failed", {"code": error["code"]})
    )


def _end_late(conn: Connection, ids: list[str]) -> int:
    error = DeadlineExceeded("The deadline of the job passed before a worker was free.").problem()
    waiting = and_(jobs.c.id.in_(ids), jobs.c.state == "queued")
    return change(conn, end(waiting, "failed").values(error=error), "failed", {"code": error["code"]})


def to_sweep(conn: Connection) -> bool:
    """Whether `sweep` or `take_unannounced` would find anything: a look that takes no lock."""
    expired = and_(jobs.c.state == "running", jobs.c.lease_until < clock())
    waiting = and_(jobs.c.state == "queued", or_(jobs.c.deadline <= clock(), unannounced()))
    return conn.execute(select(jobs.c.id).where(expired | waiting).limit(1)).first() is not None


def take_unannounced(conn: Connection, limit: int = 100) -> list[tuple[str, str]]:
    """(id, queue) of due jobs that were never announced, or too long ago; marks them as announced."""
    ids = lock_some(conn, and_(due(), unannounced()), limit)
    if not ids:
        return []
    announce = update(jobs).where(jobs.c.id.in_(ids)).values(published_at=clock(), rings=jobs.c.rings + 1)
    return [tuple(row) for row in conn.execute(announce.returning(jobs.c.id, jobs.c.queue))]


def mark_unannounced(conn: Connection, ids: list[str]) -> None:
    """Marks jobs as not announced: the broker refused the notification."""
    if ids := lock_some(conn, and_(jobs.c.id.in_(ids), jobs.c.state == "queued"), len(ids)):
        conn.execute(update(jobs).where(jobs.c.id.in_(ids)).values(published_at=None))


def unannounced() -> ColumnElement[bool]:
    """Never announced, or too long ago. The waiting time doubles, so that messages do not pile up in a long queue."""
    age = case({1: 30, 2: 60, 3: 120, 4: 240, 5: 480}, value=jobs.c.rings, else_=600)
    return or_(jobs.c.published_at.is_(None), jobs.c.published_at < clock() - age)
