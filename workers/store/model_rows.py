"""Rows of models and jobs as training needs them: which digest a name means, which checkpoints a job left."""

from typing import Any

from sqlalchemy import Connection, select

from app.core.errors import NotFound
from app.core.jobs import state as jobs
from app.core.store.database import clock, new_id, upsert
from app.core.store.tables import model_names, models


def digest_of(conn: Connection, tenant: str, reference: str) -> str:
    """The digest of `name`, `name@digest` or a digest, if the tenant has it. Raises NotFound."""
    name, _, wanted = reference.rpartition("@")
    mine = models.c.tenant == tenant
    if name:
        mine &= (models.c.name == name) & models.c.digest.startswith(wanted, autoescape=True)
    else:
        alias = select(model_names.c.digest).where(model_names.c.tenant == tenant, model_names.c.name == reference)
        mine &= models.c.digest == (conn.execute(alias).scalar_one_or_none() or reference)
    found = conn.execute(select(models.c.digest).where(mine).limit(2)).scalars().all()
    if len(found) != 1:
        raise NotFound(f"There is no model {reference}.", field="init_from")
    return found[0]


def checkpoints_of(conn: Connection, tenant: str, job_id: str) -> dict[str, Any] | None:
    """The checkpoints of a job of this tenant; see app/core/jobs/checkpoints.py. Raises NotFound."""
    return jobs.get(conn, tenant, job_id)["checkpoint"]


def register(conn: Connection, *, tenant: str, card: dict[str, Any], job_id: str | None) -> None:
    """The row of a published model; its name now means this version."""
    row = {name: card.get(name) for name in ("digest", "name", "family", "dataset", "dataset_digest", "config")}
    row |= {name: card.get(name) for name in ("seed", "metrics", "capabilities", "bytes")}
    row |= {"id": new_id(), "tenant": tenant, "card": card, "job_id": job_id, "created_at": clock()}
    upsert(conn, models, row, ["tenant", "digest"])
    alias = {"tenant": tenant, "name": card["name"], "digest": card["digest"], "updated_at": clock()}
    upsert(conn, model_names, alias, ["tenant", "name"])
