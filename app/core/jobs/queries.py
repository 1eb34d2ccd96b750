"""Queries of jobs: one, a page, the next due, counts. Clients see the jobs of their tenant only."""

import json
import re
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, case, func, or_, select, true

from app.core.errors import InvalidRequest, NotFound
from app.core.settings import settings
from app.core.store.database import clock
from app.core.store.tables import ended_jobs, jobs

TERMINAL = ("succeeded", "failed", "canceled")
STATES = ("queued", "running", *TERMINAL)
PATIENCE_SECONDS = 600
DEVICES = func.coalesce(jobs.c.spec["devices"].as_integer(), 1)
"""Devices that a job runs on."""
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


def get(conn: Connection, tenant: str, job_id: str, lock: bool = False) -> dict[str, Any]:
    """The row of a job of the tenant; `lock` keeps it unchanged until the commit. Raises NotFound."""
    row = None
    if UUID.fullmatch(job_id):
        statement = select(jobs).where(jobs.c.id == job_id, jobs.c.tenant == tenant)
        row = conn.execute(statement.with_for_update() if lock else statement).mappings().one_or_none()
    if row is None:
        raise NotFound(f"Job {json.dumps(job_id[:60])} was not found.", remedy="GET /v1/jobs lists the jobs.")
    return dict(row)


def list_jobs(
    conn: Connection,
    tenant: str,
    *,
    limit: int = 20,
    cursor: str | None = None,
    kind: str | None = None,
    state: str | None = None,
) -> tuple[list[dict[str, Any]], str | None]:
    """A page of jobs, newest first, and the cursor of the next page (None at the end)."""
    if cursor is not None and not UUID.fullmatch(cursor):
        raise InvalidRequest("cursor must be the next_cursor of a page.", field="cursor")
    if state is not None and state not in STATES:
        raise InvalidRequest(f"status must be one of {', '.join(STATES)}.", field="status")
    if kind is not None and not WORD.fullmatch(kind):
        raise InvalidRequest("kind must be a word such as training.", field="kind")
    conditions = [jobs.c.tenant == tenant, jobs.c.id < cursor if cursor else true()]
    conditions += [jobs.c.kind == kind] if kind else []
    conditions += [jobs.c.state == state] if state else []
    rows = conn.execute(select(jobs).where(*conditions).order_by(jobs.c.id.desc()).limit(limit + 1)).mappings().all()
    page = [dict(row) for row in rows[:limit]]
    return page, page[-1]["id"] if len(rows) > limit else None


def statuses(conn: Connection, ids: list[str]) -> dict[str, str]:
    """Of measurements whose metrics have not arrived, what their jobs do: measuring, failed or canceled."""
    rows = conn.execute(select(jobs.c.id, jobs.c.state).where(jobs.c.id.in_(ids))) if ids else ()
    waiting = {"queued": "measuring", "running": "measuring", "canceled": "canceled"}
    return {row.id: waiting.get(row.state, "failed") for row in rows}


def counts(conn: Connection) -> dict[tuple[str, str], int]:
    """How many jobs there are by (kind, state), over all tenants: for gauges. Those that ended are not read again."""
    active = jobs.c.state.in_(("queued", "running"))
    now = select(jobs.c.kind, jobs.c.state, func.count()).where(active).group_by(jobs.c.kind, jobs.c.state)
    kind_and_state = ended_jobs.c.kind, ended_jobs.c.state
    ended = select(*kind_and_state, func.sum(ended_jobs.c.change)).group_by(*kind_and_state)
    rows = [*conn.execute(now), *conn.execute(ended)]
    return {(kind, state): int(count) for kind, state, count in rows if count}


def due() -> ColumnElement[bool]:
    """Queued, not held back, not too late."""
    in_time = or_(jobs.c.deadline.is_(None), jobs.c.deadline > clock())
    return and_(jobs.c.state == "queued", jobs.c.run_after <= clock(), in_time)


def devices_needed(conn: Connection, job_id: str) -> int:
    """The number of devices that a job runs on."""
    return conn.execute(select(DEVICES).where(jobs.c.id == job_id)).scalar_one()


def next_due(conn: Connection, queue: str, most_devices: int | None = None) -> str | None:
    """The job that `claim_oldest` would try first.

    Tenants with fewest running jobs in the queue go first, then those that were served longest ago; of a tenant the
    oldest job. Running jobs no longer count against a tenant that waits for PATIENCE_SECONDS for each of them.
    A tenant with `max_running_jobs_per_tenant` running jobs, in all queues, waits. Jobs that need more devices than
    `most_devices` are left to other workers.
    """
    fits = true() if most_devices is None else most_devices >= DEVICES
    waiting = (
        select(jobs.c.tenant, func.min(jobs.c.id).label("id"))
        .where(jobs.c.queue == queue, due(), fits)
        .group_by(jobs.c.tenant)
        .subquery()
    )
    theirs = and_(jobs.c.tenant == waiting.c.tenant, jobs.c.queue == queue)
    running = select(func.count()).where(theirs, jobs.c.state == "running").scalar_subquery()
    served = select(func.coalesce(func.max(jobs.c.claimed_at), 0)).where(theirs).scalar_subquery()
    everywhere = and_(jobs.c.tenant == waiting.c.tenant, jobs.c.state == "running")
    within_limit = select(func.count()).where(everywhere).scalar_subquery() < settings().max_running_jobs_per_tenant
    oldest = jobs.alias()
    since = select(oldest.c.run_after).where(oldest.c.id == waiting.c.id).scalar_subquery()
    patient = and_(*(time < clock() - PATIENCE_SECONDS * running for time in (since, served)))
    turn = case((patient, 0), else_=running), served, waiting.c.id
    return conn.execute(select(waiting.c.id).where(within_limit).order_by(*turn).limit(1)).scalar_one_or_none()
