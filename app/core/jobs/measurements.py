"""The metrics of a published model arrive after it: a job of the kind "measurement" measures it and writes them.

The digest of a model covers its card, so metrics that come later are in its row: in `metrics`, and in `measurement` as
{"status", "job", "measure", "warnings", "trainings"}. `trainings` are the jobs that made the version and whose results
get the metrics. The column is null for models whose card has all their metrics.
"""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, select, update

from app.core.jobs import state as jobs
from app.core.jobs.queries import statuses
from app.core.store import models as model_rows
from app.core.store.tables import models

Row = dict[str, Any]
DEPTH = {"none": 0, "quick": 1, "full": 2}


def before(conn: Connection, tenant: str, digest: str) -> Row:
    """The metrics and the measurement of a version that exists already, whose row stays locked; else of none."""
    mine = (models.c.tenant == tenant) & (models.c.digest == digest)
    columns = models.c.metrics, models.c.measurement
    row = conn.execute(select(*columns).where(mine).with_for_update()).mappings().first()
    return dict(row or {"metrics": {}, "measurement": None})


def begin(conn: Connection, *, tenant: str, digest: str, training: str, spec: Row, earlier: Row) -> None:
    """Queues the measurement of a version just registered; the result of its training names the job.

    `earlier` is what `before` returned: a version that was measured as thoroughly, or is now, is not measured again.
    """
    known, metrics = earlier["measurement"], earlier["metrics"]
    if not known or DEPTH[known["measure"]] < DEPTH[spec["measure"]] or _status(conn, known) in ("failed", "canceled"):
        metrics, known = None, {"status": "none", "job": None, "measure": spec["measure"]}
        known |= {"warnings": [], "trainings": []}
        if spec["measure"] != "none":
            job, _ = jobs.accept(conn, tenant=tenant, kind="measurement", spec=spec, within_quota=False)
            known |= {"status": "measuring", "job": job["id"]}
    known = known | {"trainings": [*known["trainings"], training]}
    _store(conn, tenant, digest, known, metrics)
    _tell(conn, training, known, metrics)


def arrive(conn: Connection, *, tenant: str, digest: str, job: str, metrics: Row, warnings: list[str]) -> None:
    """Writes what the measurement `job` found, unless the version was deleted or is measured by another job now."""
    row = before(conn, tenant, digest)
    if (row["measurement"] or {}).get("job") != job:
        return
    known, metrics = row["measurement"] | {"status": "measured", "warnings": warnings}, row["metrics"] | metrics
    _store(conn, tenant, digest, known, metrics)
    for training in known["trainings"]:
        _tell(conn, training, known, metrics)


def cancel(conn: Connection, tenant: str, text: str) -> None:
    """Cancels the measurements of a version, or with a bare name of all, before they are deleted."""
    row = model_rows.get(conn, tenant, text)
    named = (models.c.tenant == tenant) & (models.c.name == row["name"])
    which = models.c.digest == row["digest"] if "@" in text else True
    for known in conn.execute(select(models.c.measurement).where(named, which)).scalars().all():
        if known and _status(conn, known) == "measuring":
            jobs.cancel(conn, tenant, known["job"])


def view(known: Row | None, found: dict[str, str]) -> Row | None:
    """A measurement as clients see it; `found` has the status of its job."""
    if not known:
        return None
    status = found.get(known["job"], "failed") if known["status"] == "measuring" else known["status"]
    return {"status": status, "job": known["job"] and f"/v1/jobs/{known['job']}"}


def pending(every: Iterable[Row | None]) -> list[str]:
    """The jobs of the measurements whose metrics have not arrived."""
    return [known["job"] for known in every if known and known["status"] == "measuring"]


def _status(conn: Connection, known: Row) -> str:
    return view(known, statuses(conn, pending([known])))["status"]


def _tell(conn: Connection, training: str, known: Row, metrics: Row | None) -> None:
    """Writes into the result of a training how far the measurement is; metrics are an event `measured` too."""
    more: Row = {"measurement": {"status": known["status"], "job": known["job"]}}
    found = {"metrics": metrics, "warnings": known["warnings"]} if known["status"] == "measured" else {}
    jobs.amend_result(conn, training, more | found, ("measured", found) if found else None)


def _store(conn: Connection, tenant: str, digest: str, known: Row, metrics: Row | None) -> None:
    mine = (models.c.tenant == tenant) & (models.c.digest == digest)
    values = {"measurement": known} | ({} if metrics is None else {"metrics": metrics})
    conn.execute(update(models).where(mine).values(**values))
