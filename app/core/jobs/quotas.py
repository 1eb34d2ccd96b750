"""How much the jobs of a tenant use: running and queued ones, and the seconds that they have run in the last day."""

from dataclasses import dataclass

from sqlalchemy import Connection, case, func, select

from app.core.jobs.state import QUEUES
from app.core.store.database import clock
from app.core.store.tables import jobs

DAY = 86_400


@dataclass(frozen=True)
class Used:
    """`longest_seconds`: of the jobs that run now. `seconds_of_day`: of the latest attempts in the last 24 hours."""

    queued: int
    running: int
    longest_seconds: float
    seconds_of_day: float


def used(conn: Connection, tenant: str) -> Used:
    counts = {
        state: conn.execute(
            select(func.count(), func.max(clock() - jobs.c.claimed_at)).where(
                jobs.c.tenant == tenant, jobs.c.state == state
            )
        ).one()
        for state in ("queued", "running")
    }
    (queued, _), (running, longest) = counts["queued"], counts["running"]
    return Used(queued, running, round(longest or 0.0, 1), round(seconds_of_day(conn, tenant), 1))


def seconds_of_day(conn: Connection, tenant: str) -> float:
    since = clock() - DAY
    ran = func.coalesce(jobs.c.finished_at, clock()) - jobs.c.claimed_at
    began_today = select(func.sum(case((jobs.c.state == "queued", 0.0), else_=ran))).where(
        jobs.c.tenant == tenant, jobs.c.queue.in_(QUEUES), jobs.c.claimed_at > since
    )
    whole_day = select(func.count() * float(DAY)).where(
        jobs.c.tenant == tenant, jobs.c.state == "running", jobs.c.claimed_at <= since
    )
    return (conn.execute(began_today).scalar_one() or 0.0) + conn.execute(whole_day).scalar_one()
