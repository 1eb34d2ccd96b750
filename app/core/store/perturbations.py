"""Universal perturbations as rows: found by name, listed, stored, deleted. Everything stays inside one tenant."""

from typing import Any

from sqlalchemy import Connection, delete, insert, select, true

from app.core import catalog
from app.core.catalog.describe import quoted
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
        existing = conn.execute(select(perturbations.c.name).where(mine)).scalars().all()
        remedy = catalog.name_hint(name, existing) or "There are no perturbations yet. POST /v1/perturbations fits one."
        raise NotFound(f"Perturbation {quoted(name)} was not found.", remedy=remedy)
    return dict(row)


def page(conn: Connection, tenant: str, limit: int, after: str | None = None) -> tuple[list[Row], str | None]:
    """A page by name, and the cursor of the next."""
    conditions = perturbations.c.tenant == tenant, perturbations.c.name > after if after else true()
    statement = select(perturbations).where(*conditions).order_by(perturbations.c.name).limit(limit + 1)
    rows = [dict(row) for row in conn.execute(statement).mappings()]
    return rows[:limit], rows[limit - 1]["name"] if len(rows) > limit else None


def check_free(conn: Connection, tenant: str, name: str) -> None:
    """Raises Conflict when the name is taken."""
    mine = (perturbations.c.tenant == tenant) & (perturbations.c.name == name)
    if conn.execute(select(perturbations.c.name).where(mine)).first():
        raise Conflict(
            f"A perturbation named {name} exists already.", field="/name", remedy="Choose another name, or delete it."
        )


def register(conn: Connection, tenant: str, name: str, facts: dict[str, Any], size: int, job_id: str) -> None:
    """Writes the row of a fitted perturbation. Raises Conflict when the name was taken in the meantime."""
    check_free(conn, tenant, name)
    row = {"tenant": tenant, "name": name, "facts": facts, "bytes": size, "job_id": job_id, "created_at": clock()}
    row |= {"digest": facts["digest"], "model_digest": facts["version"]}
    conn.execute(insert(perturbations).values(**row))


def facts_of(conn: Connection, digest: str) -> dict[str, Any] | None:
    """The facts that a digest covers; None when no tenant has such a perturbation."""
    return conn.execute(select(perturbations.c.facts).where(perturbations.c.digest == digest).limit(1)).scalar()


def remove(conn: Connection, tenant: str, name: str) -> str | None:
    """Deletes the row. Returns the digest if no other row needs its files. Raises NotFound."""
    digest = get(conn, tenant, name)["digest"]
    conn.execute(delete(perturbations).where(perturbations.c.tenant == tenant, perturbations.c.name == name))
    left = conn.execute(select(perturbations.c.name).where(perturbations.c.digest == digest).limit(1)).first()
    return None if left else digest


def forget_blobs(digest: str | None) -> None:
    if digest:
        blobs.delete_prefix(f"perturbations/{digest}")
