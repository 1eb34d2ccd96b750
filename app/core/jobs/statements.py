"""Pieces of the statements that change a job's state; used by `state` (clients, holders) and `recovery` (sweepers)."""

from collections import Counter
from typing import Any

from sqlalchemy import ColumnElement, Connection, Update, and_, case, func, insert, or_, select, update

from app.core.jobs import events
from app.core.jobs.queries import TERMINAL
from app.core.settings import settings
from app.core.store.database import clock, new_id
from app.core.store.tables import ended_jobs, jobs

FALSE_STARTS = 10
"""Attempts in a row that may end before their first heartbeat; they are not failures."""
BEGUN = jobs.c.begun_at.is_not(None)
ONE_MORE = {
    "failures": jobs.c.failures + case((BEGUN, 1), else_=0),
    "false_starts": jobs.c.false_starts + case((BEGUN, 0), else_=1),
}
"""Values of a job whose attempt was lost or failed."""
LAST = or_(BEGUN & (jobs.c.failures + 1 >= jobs.c.max_failures), ~BEGUN & (jobs.c.false_starts + 1 >= FALSE_STARTS))
"""Whether such an attempt was the last."""


def held_by(job_id: str, token: str) -> ColumnElement[bool]:
    return and_(jobs.c.id == job_id, jobs.c.token == token, jobs.c.state == "running")


def lock(conn: Connection, job_id: str) -> None:
    """Locks the row, so that no cancel comes between two statements (PostgreSQL; SQLite has one writer)."""
    conn.execute(select(jobs.c.id).where(jobs.c.id == job_id).with_for_update())


def lock_some(conn: Connection, which: ColumnElement[bool], limit: int) -> list[str]:
    """Locks the oldest rows that match and are not locked by another; returns their ids.

    Every statement that changes several rows starts with this, in the order of the ids: two such transactions would
    otherwise wait for each other's rows (PostgreSQL). Locked rows are left to whoever holds them, and to a later round.
    """
    rows = select(jobs.c.id).where(which).order_by(jobs.c.id).limit(limit)
    return list(conn.execute(rows.with_for_update(skip_locked=True)).scalars())


def late() -> ColumnElement[bool]:
    return func.coalesce(jobs.c.deadline <= clock(), False)


def too_long() -> ColumnElement[bool]:
    return func.coalesce(jobs.c.claimed_at + settings().max_job_seconds <= clock(), False)


def end(which: ColumnElement[bool], state: str) -> Update:
    return update(jobs).where(which).values(state=state, token=None, lease_until=None, finished_at=clock())


def queued(which: ColumnElement[bool]) -> Update:
    fresh = {"published_at": None, "rings": 0, "cancel_requested": False}
    return update(jobs).where(which).values(state="queued", token=None, lease_until=None, **fresh)


def change(
    conn: Connection, statement: Update, kind: str, data: dict[str, Any] | None = None, by: str | None = None
) -> int:
    """Runs one change of state and writes an event for each changed row; `by` is the token of a holder that did it."""
    changed = conn.execute(statement.returning(jobs.c.id, jobs.c.kind)).all()
    for job_id, _ in changed:
        events.append(conn, job_id, kind, data or {}, by=by)
    if kind in TERMINAL:
        for kind_of_job, number in Counter(kind_of_job for _, kind_of_job in changed).items():
            count_ended(conn, kind_of_job, kind, number)
    return len(changed)


def count_ended(conn: Connection, kind: str, state: str, change: int) -> None:
    """Adds to the number of ended jobs that `queries.counts` reads."""
    conn.execute(insert(ended_jobs).values(id=new_id(), kind=kind, state=state, change=change))
