"""Jobs as clients see them."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, func, select, tuple_

from app.core import wire
from app.core.jobs import events, measurements
from app.core.jobs import state as jobs
from app.core.jobs.queries import statuses
from app.core.store.tables import job_metrics

Row = dict[str, Any]
PRIVATE = ("upload", "bytes")
RETRY_AFTER = 2


def one(conn: Connection, row: Row) -> wire.Job:
    return many(conn, [row])[0]


def many(conn: Connection, rows: Iterable[Row]) -> list[wire.Job]:
    rows = list(rows)
    latest = _latest_metrics(conn, [row["id"] for row in rows])
    alarms = _alarms(conn, [row["id"] for row in rows if row["kind"] == "training"])
    if any("measurement" in (row["result"] or {}) for row in rows):
        rows = _measured(conn, rows)
    queues = {row["queue"] for row in rows if row["state"] == "queued"}
    places = jobs.queue_positions(conn, queues) if queues else {}
    return [_view(row, places.get(row["id"]), latest.get(row["id"], {}), alarms.get(row["id"], {})) for row in rows]


def artifacts(row: Row) -> dict[str, str]:
    """Names of the files a job made, with the keys of their blobs."""
    keys = (row["result"] or {}).get("artifacts") or {}
    return {name: key for name, key in keys.items() if isinstance(key, str)}


def _view(row: Row, place: int | None, metrics: dict[str, float | None], alarms: dict) -> wire.Job:
    return wire.Job(
        id=row["id"],
        kind=row["kind"],
        status=row["state"],
        progress=wire.Progress(**(row["progress"] or {})),
        queue_position=place,
        attempt=row["attempt"],
        cancel_requested=row["cancel_requested"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        metrics=metrics,
        alarms=list(alarms.values()),
        error=row["error"],
        result=_result(row),
        request={name: value for name, value in row["spec"].items() if name not in PRIVATE},
        links=_links(row),
    )


def _result(row: Row) -> dict[str, Any] | None:
    """Blob keys become addresses."""
    if not artifacts(row):
        return row["result"]
    here = f"/v1/jobs/{row['id']}/artifacts"
    return row["result"] | {"artifacts": {name: f"{here}/{name}" for name in artifacts(row)}}


def _measured(conn: Connection, rows: list[Row]) -> list[Row]:
    """The rows, with results of trainings that say how far the measurement of the model is."""
    known = [(row["result"] or {}).get("measurement") for row in rows]
    found = statuses(conn, measurements.pending(known))
    for index, each in enumerate(known):
        if each:
            result = rows[index]["result"] | {"measurement": measurements.view(each, found)}
            rows[index] = rows[index] | {"result": result}
    return rows


def _links(row: Row) -> wire.Links:
    here, result = f"/v1/jobs/{row['id']}", row["result"] or {}
    links = {"self": here, "events": f"{here}/events"}
    if row["kind"] == "training":
        links |= {"metrics": f"{here}/metrics", "snapshots": f"{here}/snapshots"}
    if job := (result.get("measurement") or {}).get("job"):
        links["measurement"] = job
    if row["state"] not in jobs.TERMINAL:
        links["cancel"] = f"{here}/cancel"
    if row["kind"] in jobs.RESUMABLE and row["state"] in ("failed", "canceled"):
        links["resume"] = f"{here}/resume"
    if row["state"] == "succeeded" and row["kind"] in ("training", "model"):
        links["model"] = f"/v1/models/{result.get('model')}"
    if row["state"] == "succeeded" and row["kind"] == "perturbation":
        links["perturbation"] = f"/v1/perturbations/{result.get('perturbation')}"
    if row["state"] == "succeeded" and row["kind"] == "dataset":
        links["dataset"] = f"/v1/datasets/{result.get('dataset')}"
    return links


def _alarms(conn: Connection, ids: list[str]) -> dict[str, dict[tuple, wire.Alarm]]:
    """The alarms of each training, each as its latest event tells it."""
    by_job: dict[str, dict[tuple, wire.Alarm]] = {}
    for event in events.alarms(conn, ids) if ids else ():
        data = event["data"]
        alarm = wire.Alarm(**{name: data[name] for name in wire.Alarm.model_fields if name in data})
        by_job.setdefault(event["job_id"], {})[alarm.name, alarm.images] = alarm
    return by_job


def _latest_metrics(conn: Connection, ids: list[str]) -> dict[str, dict[str, float | None]]:
    """The last point of each job's curves, in one query."""
    last = (
        select(job_metrics.c.job_id, func.max(job_metrics.c.images))
        .where(job_metrics.c.job_id.in_(ids))
        .group_by(job_metrics.c.job_id)
    )
    columns = job_metrics.c.job_id, job_metrics.c["values"]
    rows = conn.execute(select(*columns).where(tuple_(job_metrics.c.job_id, job_metrics.c.images).in_(last)))
    return dict(tuple(row) for row in rows)
