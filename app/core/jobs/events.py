"""The events of a job, numbered in order (replayed to watchers), and its metrics."""

import hashlib
import secrets
from typing import Any

from sqlalchemy import ColumnElement, Connection, String, cast, insert, literal, select, update

from app.core.store.database import clock, upsert
from app.core.store.tables import IS_ALARM, job_events, job_metrics, jobs


class LeaseLost(Exception):
    """The token is no longer valid: another worker has the job, or it has ended. Nothing was written; stop silently."""


def append(
    conn: Connection, job_id: str, kind: str, data: dict[str, Any], token: str | None = None, by: str | None = None
) -> int:
    """Adds the next event of the job and returns its number. With a token, raises LeaseLost for any but its holder.

    `by` is the token of a holder that gave it up in the same transaction: recorded, not compared.
    """
    return _append(conn, job_id, kind, [data], token, by)[0]


def add_metrics(conn: Connection, job_id: str, token: str, images: int, values: dict[str, float]) -> None:
    """Adds one point of the metrics. A resumed attempt overwrites the points that it repeats."""
    _, attempt = _append(conn, job_id, "metrics", [{"images": images, "values": values}], token)
    here = (job_metrics.c.job_id == job_id) & (job_metrics.c.images == images) & (job_metrics.c.attempt == attempt)
    before = conn.execute(select(job_metrics.c["values"]).where(here)).scalar_one_or_none() or {}
    point = {"job_id": job_id, "images": images, "attempt": attempt, "values": before | values}
    upsert(conn, job_metrics, point, ["job_id", "images"])


def add_curve(conn: Connection, job_id: str, token: str, points: list[tuple[int, dict[str, float]]]) -> None:
    """Adds points (images, values) like `add_metrics`, in three statements for any number of points."""
    values_by_point = [{"images": images, "values": values} for images, values in points]
    _, attempt = _append(conn, job_id, "metrics", values_by_point, token)
    same = {"job_id": job_id, "attempt": attempt}
    upsert(conn, job_metrics, [same | point for point in values_by_point], ["job_id", "images"])


def _append(
    conn: Connection, job_id: str, kind: str, every: list[dict[str, Any]], token: str | None, by: str | None = None
) -> tuple[int, int]:
    """Adds events of one kind; returns the number of the last and the attempt of the writer.

    Events say who wrote them by the writer's own token, not by what the job's row says by then.
    """
    mine = jobs.c.id == job_id if token is None else (jobs.c.id == job_id) & (jobs.c.token == token)
    bump = update(jobs).where(mine).values(last_event=jobs.c.last_event + len(every))
    row = conn.execute(bump.returning(jobs.c.last_event, jobs.c.attempt, clock())).one_or_none()
    if row is None:
        raise LeaseLost(job_id)
    last, attempt, at = row
    writer = None
    if holder := token or by:
        attempt, writer = attempt_of(holder) or attempt, writer_of(holder)
    same = {"job_id": job_id, "at": at, "attempt": attempt, "writer": writer, "kind": kind}
    first = last - len(every) + 1
    conn.execute(insert(job_events), [same | {"seq": first + n, "data": data} for n, data in enumerate(every)])
    return last, attempt


def new_token() -> ColumnElement[str]:
    """For the UPDATE that claims a job: random, then the number of the attempt that begins."""
    return literal(f"{secrets.token_hex(12)}.").concat(cast(jobs.c.attempt + 1, String))


def writer_of(token: str) -> str:
    """A digest of a token, 16 hexadecimal digits, that may be shown."""
    return hashlib.sha256(token.encode()).hexdigest()[:16]


def attempt_of(token: str) -> int | None:
    """The attempt that a token was made for, see `new_token`. None for a token of an older version."""
    _, dot, number = token.rpartition(".")
    return int(number) if dot and number.isdecimal() else None


def events_after(conn: Connection, job_id: str, seq: int = 0, limit: int = 500) -> list[dict[str, Any]]:
    """Events with a higher number than `seq`, oldest first."""
    later = (job_events.c.job_id == job_id) & (job_events.c.seq > seq)
    rows = conn.execute(select(job_events).where(later).order_by(job_events.c.seq).limit(limit))
    return [dict(row) for row in rows.mappings()]


def alarms(conn: Connection, job_ids: list[str]) -> list[dict[str, Any]]:
    """The alarms of trainings: events of the kinds `tables.ALARMS`, the oldest first."""
    alarms_of = job_events.c.job_id.in_(job_ids) & IS_ALARM
    rows = conn.execute(select(job_events).where(alarms_of).order_by(job_events.c.job_id, job_events.c.seq))
    return [dict(row) for row in rows.mappings()]


def metrics(conn: Connection, job_id: str, after: int = -1, limit: int = 10_000) -> list[dict[str, Any]]:
    """Points of the metrics with more than `after` images, in order: {"images", "values"}."""
    columns = job_metrics.c.images, job_metrics.c["values"]
    later = (job_metrics.c.job_id == job_id) & (job_metrics.c.images > after)
    rows = conn.execute(select(*columns).where(later).order_by(job_metrics.c.images).limit(limit))
    return [dict(row) for row in rows.mappings()]


def snapshots(conn: Connection, job_id: str) -> dict[int, dict[str, Any]]:
    """The event data of each snapshot by images; the latest of snapshots made twice."""
    snapshots_of = (job_events.c.job_id == job_id) & (job_events.c.kind == "snapshot")
    rows = conn.execute(select(job_events.c.data).where(snapshots_of).order_by(job_events.c.seq)).scalars()
    return {data["images"]: data for data in rows}
