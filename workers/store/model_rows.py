"""Rows of models and jobs as jobs need them: the digest that a reference means, the checkpoints of a job."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, select

from app.core.errors import NotFound
from app.core.jobs import state as jobs
from app.core.store.database import clock, new_id, reading, upsert
from app.core.store.tables import model_names, models
from models.family import Family
from workers import devices
from workers.jobs.job import RunningJob
from workers.store.models import load_model


def digest_of(conn: Connection, tenant: str, reference: str) -> str:
    """The digest of `name`, `name@digest` or a digest, if the tenant has it. Raises NotFound."""
    name, _, prefix = reference.rpartition("@")
    mine = models.c.tenant == tenant
    if name:
        mine &= (models.c.name == name) & models.c.digest.startswith(prefix, autoescape=True)
    else:
        alias = select(model_names.c.digest).where(model_names.c.tenant == tenant, model_names.c.name == reference)
        mine &= models.c.digest == (conn.execute(alias).scalar_one_or_none() or reference)
    digests = conn.execute(select(models.c.digest).where(mine).limit(2)).scalars().all()
    if len(digests) != 1:
        raise NotFound(f"Model {reference!r} not found.", field="init_from")
    return digests[0]


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


def digest_for_job(job: RunningJob, reference: str, field: str = "model") -> str:
    """The digest of another model that the request of `job` names in `field`. Raises NotFound."""
    try:
        with reading(job.bind) as conn:
            return digest_of(conn, job.tenant, reference)
    except NotFound as error:
        error.field = field
        raise


def loader(job: RunningJob) -> Callable[[str], Family]:
    """A function from a reference to the tenant's model on the device, ready to serve; each is loaded once."""
    loaded: dict[str, Family] = {}

    def load(reference: str) -> Family:
        if reference not in loaded:
            loaded[reference] = load_model(digest_for_job(job, reference)).to(devices.device())
        return loaded[reference]

    return load
