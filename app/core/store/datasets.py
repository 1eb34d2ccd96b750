"""Datasets: rows of imported ones, and the built-in ones. Everything is read and written inside one tenant."""

from typing import Any

from sqlalchemy import Connection, collate, func, select, true, update

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
    by_code = collate(datasets.c.name, "C") if conn.dialect.name == "postgresql" else datasets.c.name  # Python's order
    later = _alive(tenant) & (by_code > after if after else true())
    rows = conn.execute(select(datasets).where(later).order_by(by_code).limit(limit + 1)).mappings()
    by_name: dict[str, Row | Builtin] = {name: about for name, about in BUILTINS.items() if name > (after or "")}
    by_name |= {row["name"]: dict(row) for row in rows}
    order = sorted(by_name)
    return [by_name[name] for name in order[:limit]], order[limit - 1] if len(order) > limit else None


def remove(conn: Connection, tenant: str, name: str) -> None:
    """Hides a dataset and frees its name. Its arrays are deleted later (jobs/cleanup.py), when nothing needs them."""
    hide = update(datasets).where(_alive(tenant), datasets.c.name == name).values(deleted_at=clock())
    if not conn.execute(hide).rowcount:
        if name in BUILTINS:
            raise Conflict(f"The built-in dataset {name} is not imported, so there is nothing to delete.")
        raise _absent(conn, tenant, name)


def stored(conn: Connection, digest: str) -> bool:
    """Whether any tenant has a dataset of this digest."""
    alive = (datasets.c.digest == digest) & datasets.c.deleted_at.is_(None)
    return conn.execute(select(datasets.c.id).where(alive).limit(1)).first() is not None


def importing(conn: Connection, tenant: str, name: str) -> str | None:
    """The id of a queued or running job that will make a dataset of this name."""
    active = (jobs.c.tenant == tenant) & (jobs.c.kind == "dataset") & jobs.c.state.in_(("queued", "running"))
    rows = conn.execute(select(jobs.c.id, jobs.c.spec).where(active))  # sorted here: the few active ones by their index
    return max((row.id for row in rows if row.spec.get("name") == name), default=None)


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
