"""Datasets: rows of imported ones, and the built-in ones. Everything is read and written inside one tenant."""

from typing import Any

from sqlalchemy import Connection, func, select, update

from app.core import catalog, names
from app.core.catalog.builtins import BUILTINS, Builtin
from app.core.catalog.describe import quoted
from app.core.errors import Conflict, NotFound
from app.core.store.database import clock
from app.core.store.tables import datasets, jobs, models, perturbations

Row = dict[str, Any]


def find(conn: Connection, tenant: str, name: str) -> Row | None:
    """The row of an imported dataset."""
    row = conn.execute(select(datasets).where(_alive(tenant), datasets.c.name == name)).mappings().first()
    return dict(row) if row else None


def get(conn: Connection, tenant: str, name: str) -> Row | Builtin:
    """The row, or a built-in set that is not imported yet. Raises NotFound with the nearest names, or Conflict."""
    row = find(conn, tenant, name) if names.NAME.fullmatch(name) else None
    if row is None and name in BUILTINS:
        return BUILTINS[name]
    if row is None:
        raise _absent(conn, tenant, name)
    return row


def page(conn: Connection, tenant: str, limit: int, after: str | None = None) -> tuple[list[Row | Builtin], str | None]:
    """A page of datasets by name, the built-in ones among them, and the cursor of the next page."""
    imported = conn.execute(select(datasets.c.name).where(_alive(tenant))).scalars()
    order = sorted(
        name for name in {*imported, *BUILTINS} if name > (after or "")
    )  # Python's order, whatever the collation of the database
    rows = conn.execute(select(datasets).where(_alive(tenant), datasets.c.name.in_(order[:limit]))).mappings()
    by_name: dict[str, Row | Builtin] = dict(BUILTINS) | {row["name"]: dict(row) for row in rows}
    return [by_name[name] for name in order[:limit]], order[limit - 1] if len(order) > limit else None


def remove(conn: Connection, tenant: str, name: str) -> None:
    """Hides a dataset and frees its name. Its arrays are deleted later (jobs/cleanup.py), when nothing needs them."""
    hide = update(datasets).where(_alive(tenant), datasets.c.name == name).values(deleted_at=clock())
    if not conn.execute(hide).rowcount:
        if name in BUILTINS:
            raise Conflict(f"The built-in dataset {name} is not imported, so there is nothing to delete.")
        raise _absent(conn, tenant, name)


def importing(conn: Connection, tenant: str, name: str) -> str | None:
    """The id of a queued or running job that will make a dataset of this name."""
    active = (jobs.c.tenant == tenant) & (jobs.c.kind == "dataset") & jobs.c.state.in_(("queued", "running"))
    rows = conn.execute(select(jobs.c.id, jobs.c.spec).where(active).order_by(jobs.c.id.desc()))
    return next((row.id for row in rows if row.spec.get("name") == name), None)


def stored_bytes(conn: Connection, tenant: str) -> int:
    """Bytes of the datasets, models and perturbations of a tenant."""
    sums = (
        select(func.coalesce(func.sum(table.c.bytes), 0)).where(mine)
        for table, mine in (
            (datasets, _alive(tenant)),
            (models, models.c.tenant == tenant),
            (perturbations, perturbations.c.tenant == tenant),
        )
    )
    return sum(conn.execute(statement).scalar_one() for statement in sums)


def _alive(tenant: str):
    return (datasets.c.tenant == tenant) & datasets.c.deleted_at.is_(None)


def _absent(conn: Connection, tenant: str, name: str) -> NotFound | Conflict:
    job = importing(conn, tenant, name)
    if job is not None:
        return Conflict(
            f"Dataset {name} is not ready: job {job} is queued or running.",
            remedy=f"Retry when /v1/jobs/{job} has succeeded.",
            retry_after=5,
            job=f"/v1/jobs/{job}",
        )
    existing = conn.execute(select(datasets.c.name).where(_alive(tenant))).scalars().all()
    return NotFound(f"Dataset {quoted(name)} was not found.", remedy=catalog.name_hint(name, {*existing, *BUILTINS}))
