"""Universal perturbations as rows: found by name, listed, stored, deleted. Everything stays inside one tenant."""

from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, true

from app.core import catalog
from app.core.errors import Conflict, NotFound
from app.core.store import blobs
from app.core.store.database import clock
from app.core.store.tables import perturbations

Row = dict[str, Any]
FILES = ("delta.npy", "picture.png", "examples.png")


def key(digest: str, name: str) -> str:
    """Where one of FILES is kept."""
    return f"perturbations/{digest}/{name}"


def get(conn: Connection, tenant: str, name: str) -> Row:
    """Raises NotFound with the nearest names."""
    mine = perturbations.c.tenant == tenant
    row = conn.execute(select(perturbations).where(mine, perturbations.c.name == name)).mappings().first()
    if row is None:
        known = conn.execute(select(perturbations.c.name).where(mine)).scalars().all()
        raise NotFound("There is no such perturbation.", remedy=catalog.nearest(name, list(known)))
    return dict(row)


def page(conn: Connection, tenant: str, limit: int, after: str | None = None) -> tuple[list[Row], str | None]:
    """A page by name, and the cursor of the next."""
    wanted = perturbations.c.tenant == tenant, perturbations.c.name > after if after else true()
    found = conn.execute(select(perturbations).where(*wanted).order_by(perturbations.c.name).limit(limit + 1))
    rows = [dict(row) for row in found.mappings()]
    return rows[:limit], rows[limit - 1]["name"] if len(rows) > limit else None


def check_free(conn: Connection, tenant: str, name: str) -> None:
    """Raises Conflict when the name is taken."""
    mine = (perturbations.c.tenant == tenant) & (perturbations.c.name == name)
    if conn.execute(select(perturbations.c.name).where(mine)).first():
        raise Conflict(
            f"There is a perturbation {name} already.", field="/name", remedy="Delete it, or give another name."
        )


def register(conn: Connection, tenant: str, name: str, facts: dict[str, Any], size: int, job_id: str) -> None:
    """The row of a fitted perturbation. Raises Conflict when somebody took the name meanwhile."""
    check_free(conn, tenant, name)
    row = {"tenant": tenant, "name": name, "facts": facts, "bytes": size, "job_id": job_id, "created_at": clock()}
    row |= {"digest": facts["digest"], "model_digest": facts["version"]}
    conn.execute(insert(perturbations).values(**row))


def remove(conn: Connection, tenant: str, name: str) -> str | None:
    """Deletes the row. Returns the digest when nobody needs its files any more. Raises NotFound."""
    digest = get(conn, tenant, name)["digest"]
    conn.execute(delete(perturbations).where(perturbations.c.tenant == tenant, perturbations.c.name == name))
    left = conn.execute(select(perturbations.c.name).where(perturbations.c.digest == digest).limit(1)).first()
    return None if left else digest


def forget_blobs(digest: str | None) -> None:
    if digest:
        blobs.delete_prefix(f"perturbations/{digest}")


def stored_bytes(conn: Connection, tenant: str) -> int:
    statement = select(func.coalesce(func.sum(perturbations.c.bytes), 0)).where(perturbations.c.tenant == tenant)
    return conn.execute(statement).scalar_one()
