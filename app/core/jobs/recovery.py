"""The sweeper's side of the state machine: takes lost jobs back, ends late ones, announces those that wait.

Any number of sweepers run at the same time. They lock rows in the order of their ids and skip rows that another holds.
"""

from sqlalchemy import ColumnElement, Connection, and_, case, or_, select, update

from app.core.errors import AttemptsExhausted, DeadlineExceeded
from app.core.jobs.queries import due
from app.core.jobs.statements import BEGUN, FALSE_STARTS, LAST, ONE_MORE, change, end, lock_some, queued
from app.core.settings import settings
from app.core.store.database import clock
from app.core.store.tables import jobs

ROWS = 500
"""Most rows that one statement of a sweep changes; the next round takes the others."""
LOST = AttemptsExhausted(
    "The worker and the job's process disappeared in each attempt to run the job.",
    remedy="Resume the training, or submit the job again. The logs of the workers may say more.",
    cause="worker-lost",
)
NEVER_BEGAN = AttemptsExhausted(
    f"{FALSE_STARTS} attempts in a row were lost before the job's process began.",
    remedy="See the logs of the workers: their machine may have too little memory. Then submit the job again.",
    cause="never-began",
)


def sweep(conn: Connection) -> int:
    """Takes jobs back whose lease has expired, and ends those past their deadline. Returns how many changed."""
    lost = lock_some(conn, and_(jobs.c.state == "running", jobs.c.lease_until < clock()), ROWS)
    too_late = lock_some(conn, and_(jobs.c.state == "queued", jobs.c.deadline <= clock()), ROWS)
    return (_take_back(conn, lost) if lost else 0) + (_end_late(conn, too_late) if too_late else 0)


def _take_back(conn: Connection, ids: list[str]) -> int:
    expired = and_(jobs.c.id.in_(ids), jobs.c.state == "running")
    again = queued(expired & ~LAST).values(run_after=clock(), **ONE_MORE)
    changed = change(conn, end(expired & jobs.c.cancel_requested, "canceled"), "canceled", {"why": "worker-lost"})
    changed += change(conn, again, "queued", {"why": "worker-lost"})
    for error, which in ((LOST, BEGUN), (NEVER_BEGAN, ~BEGUN)):
        ended = end(expired & LAST & which, "failed").values(error=error.problem(), **ONE_MORE)
        changed += change(conn, ended, "failed", {"code": error.code})
    return changed


def _end_late(conn: Connection, ids: list[str]) -> int:
    error = DeadlineExceeded("The deadline of the job passed before a worker was free.").problem()
    waiting = and_(jobs.c.id.in_(ids), jobs.c.state == "queued")
    return change(conn, end(waiting, "failed").values(error=error), "failed", {"code": error["code"]})


def renew_leases(conn: Connection, why: str) -> int:
    """Renews leases that have run out or soon will, because nobody could renew them for a while: nobody's failure.

    Also takes back times that a clock set back has left in the future. Returns the number of renewed leases.
    """
    lease = settings().lease_seconds
    odd = or_(jobs.c.lease_until < clock() + lease / 2, jobs.c.lease_until > clock() + 2 * lease)
    ids = lock_some(conn, and_(jobs.c.state == "running", odd), ROWS)
    renewed = update(jobs).where(jobs.c.id.in_(ids)).values(lease_until=clock() + lease)
    held_back = lock_some(conn, and_(jobs.c.state == "queued", jobs.c.run_after > clock() + lease), ROWS)
    conn.execute(update(jobs).where(jobs.c.id.in_(held_back)).values(run_after=clock()))
    rung = lock_some(conn, and_(jobs.c.state == "queued", jobs.c.published_at > clock() + lease), ROWS)
    conn.execute(update(jobs).where(jobs.c.id.in_(rung)).values(published_at=None))
    return change(conn, renewed, "lease_renewed", {"why": why})


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
