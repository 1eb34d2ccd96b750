"""Rows of models as jobs need them: the digest that a reference means, loading by reference, registering a version."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, select

from app.core.errors import NotFound
from app.core.store.database import clock, new_id, reading, upsert
from app.core.store.tables import model_names, models
from models.family import Family
from workers import devices
from workers.jobs.job import RunningJob
from workers.store.models import load_model


def digest(job: RunningJob, reference: str, field: str = "model") -> str:
    """The digest of `name`, `name@digest` or a digest of the job's tenant. Raises NotFound with `field`."""
    name, _, prefix = reference.rpartition("@")
    own = models.c.tenant == job.tenant
    with reading(job.bind) as conn:
        if name:
            own &= (models.c.name == name) & models.c.digest.startswith(prefix, autoescape=True)
        else:
            names = (model_names.c.tenant == job.tenant) & (model_names.c.name == reference)
            alias = conn.execute(select(model_names.c.digest).where(names)).scalar_one_or_none()
            own &= models.c.digest == (alias or reference)
        digests = conn.execute(select(models.c.digest).where(own).limit(2)).scalars().all()
    if len(digests) != 1:
        raise NotFound(f"Model {reference!r} not found.", field=field)
    return digests[0]


def load(job: RunningJob, reference: str, field: str = "model") -> Family:
    """The model of a reference, ready to serve, on the configured device. Raises NotFound with `field`."""
    return load_model(digest(job, reference, field)).to(devices.device())


def loader(job: RunningJob) -> Callable[[str], Family]:
    """`load` for a job that names several models: each is loaded once."""
    loaded: dict[str, Family] = {}

    def load_once(reference: str) -> Family:
        if reference not in loaded:
            loaded[reference] = load(job, reference)
        return loaded[reference]

    return load_once


def register(conn: Connection, *, tenant: str, card: dict[str, Any], job_id: str | None) -> None:
    """Writes the row of a published model; its name now means this version."""
    row = {name: card.get(name) for name in ("digest", "name", "family", "dataset", "dataset_digest", "config")}
    row |= {name: card.get(name) for name in ("seed", "metrics", "capabilities", "bytes")}
    row |= {"id": new_id(), "tenant": tenant, "card": card, "job_id": job_id, "created_at": clock()}
    upsert(conn, models, row, ["tenant", "digest"])
    alias = {"tenant": tenant, "name": card["name"], "digest": card["digest"], "updated_at": clock()}
    upsert(conn, model_names, alias, ["tenant", "name"])
