"""Published models as rows: found by reference, listed, deleted. Everything is read and written inside one tenant."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from sqlalchemy import Connection, delete, select, true

from app.core import catalog, names
from app.core.catalog.describe import quoted
from app.core.errors import ModelNotReady, NotFound
from app.core.store import blobs, integrity
from app.core.store.tables import jobs, model_names, models

Row = dict[str, Any]


class ResolvedModel(NamedTuple):
    """A version of a model, as a call needs it. `pinned`: the reference names this version by its digest.

    `about` is what its price depends on (app/core/catalog/cost.py): pixels, classes, groups, dataset (the number of
    images it learned from), parameters, and its capabilities as 1.
    """

    name: str
    digest: str
    family: str
    capabilities: tuple[str, ...]
    pinned: bool
    about: Mapping[str, int] = MappingProxyType(
        {"pixels": 1, "classes": 10, "groups": 1, "dataset": 0, "parameters": 0}
    )

    @property
    def exact(self) -> str:
        """The reference that always means this version."""
        return f"{self.name}@{self.digest}"


def resolve(conn: Connection, tenant: str, text: str) -> ResolvedModel:
    """The version that `name` or `name@digest` means. Raises NotFound, or ModelNotReady while it is being trained."""
    columns = models.c.name, models.c.digest, models.c.family, models.c.capabilities
    row = conn.execute(select(*columns).where(_meant(conn, tenant, text))).first()
    if row is None:
        raise _absent(conn, tenant, text)
    pinned = "@" in text
    return ResolvedModel(row.name, row.digest, row.family, tuple(row.capabilities), pinned)


def about(card: dict[str, Any]) -> dict[str, int]:
    """The members of `ResolvedModel.about` but the capabilities, from the card of a model."""
    data, config = card.get("data") or {}, card.get("config") or {}
    return {
        "pixels": data.get("height", 1) * data.get("width", 1) * data.get("channels", 1),
        "classes": len(data.get("classes") or ()) or 10,
        "groups": len(config.get("boundaries") or ()) + 1,
        "dataset": sum(max(rows.values(), default=0) for rows in (data.get("columns") or {}).values()),
        "parameters": card.get("parameters") or 0,
    }


def get(conn: Connection, tenant: str, text: str) -> Row:
    """The whole row of that version."""
    row = conn.execute(select(models).where(_meant(conn, tenant, text))).mappings().first()
    if row is None:
        raise _absent(conn, tenant, text)
    return dict(row)


def versions(conn: Connection, tenant: str, name: str) -> list[Row]:
    """Digest, time, size and metrics of every version of a name, the newest first."""
    columns = models.c.digest, models.c.created_at, models.c.bytes, models.c.metrics, models.c.job_id
    mine = (models.c.tenant == tenant) & (models.c.name == name)
    rows = conn.execute(select(*columns).where(mine).order_by(models.c.created_at.desc(), models.c.id.desc()))
    return [dict(row) for row in rows.mappings()]


def page(
    conn: Connection, tenant: str, limit: int, after: str | None = None, family: str | None = None
) -> tuple[list[Row], str | None]:
    """A page of models by name, each in the version its name means, and the cursor of the next page."""
    alias = (model_names.c.tenant == models.c.tenant) & (model_names.c.digest == models.c.digest)
    conditions = [model_names.c.tenant == tenant, model_names.c.name > after if after else true()]
    conditions += [models.c.family == family] if family else []
    statement = select(models).join(model_names, alias).where(*conditions).order_by(model_names.c.name).limit(limit + 1)
    rows = [dict(row) for row in conn.execute(statement).mappings()]
    return rows[:limit], rows[limit - 1]["name"] if len(rows) > limit else None


def training_of(conn: Connection, tenant: str, name: str) -> str | None:
    """The id of the newest queued or running training or import that will make a model of this name."""
    making = (jobs.c.tenant == tenant) & jobs.c.kind.in_(("training", "model"))
    active = making & jobs.c.state.in_(("queued", "running"))
    rows = conn.execute(select(jobs.c.id, jobs.c.spec).where(active))  # sorted here: the few active ones by their index
    return max((row.id for row in rows if row.spec.get("name") == name), default=None)


def remove(conn: Connection, tenant: str, text: str) -> list[str]:
    """Deletes a version, or with a bare name all of them. Returns the digests that no row of any tenant has now."""
    row = get(conn, tenant, text)
    mine = (models.c.tenant == tenant) & (models.c.name == row["name"])
    which = mine & (models.c.digest == row["digest"]) if "@" in text else mine
    deleted = conn.execute(delete(models).where(which).returning(models.c.digest)).scalars().all()
    alias = (model_names.c.tenant == tenant) & (model_names.c.name == row["name"])
    left = versions(conn, tenant, row["name"])
    if not left:
        conn.execute(delete(model_names).where(alias))
    elif conn.execute(select(model_names.c.digest).where(alias)).scalar_one() in deleted:
        conn.execute(model_names.update().where(alias).values(digest=left[0]["digest"]))
    shared = conn.execute(select(models.c.digest).where(models.c.digest.in_(deleted))).scalars().all()
    return [digest for digest in deleted if digest not in shared]


def published(conn: Connection, digest: str) -> bool:
    """Whether any tenant has a model of this digest."""
    return conn.execute(select(models.c.id).where(models.c.digest == digest).limit(1)).first() is not None


def fault(row: Row, read: bool = True) -> str | None:
    """Why the weights of a version cannot be used, in a sentence; None if they can.

    `read`: their bytes are read where they lie on this machine's disk, once per file; otherwise their size is compared.
    """
    found, what = integrity.fault(integrity.weights(row["digest"], row["card"]), row["bytes"], read), "weights are"
    if not found and read and not blobs.exists(f"{folder(row['digest'])}/card.json"):
        found, what = "missing", "card is"
    return found and f"Its {what} {found} in the blob store. Ask the administrator: {integrity.REPAIR}."


def folder(digest: str) -> str:
    """The prefix of the keys of a version's files."""
    return f"models/{digest}"


def forget_blobs(digests: list[str]) -> None:
    for digest in digests:
        blobs.delete_prefix(folder(digest))


def _meant(conn: Connection, tenant: str, text: str):
    """The condition for the row of the version that a reference means."""
    reference = names.reference(text)
    if reference is None:
        return models.c.id.is_(None)
    here = (models.c.tenant == tenant) & (models.c.name == reference.name)
    if reference.digest:
        versions = select(models.c.digest).where(here, models.c.digest.startswith(reference.digest)).limit(2)
        digests = conn.execute(versions).scalars().all()
        return here & (models.c.digest == digests[0]) if len(digests) == 1 else models.c.id.is_(None)
    newest = select(model_names.c.digest).where(model_names.c.tenant == tenant, model_names.c.name == reference.name)
    return here & (models.c.digest == newest.scalar_subquery())


def _absent(conn: Connection, tenant: str, text: str) -> NotFound | ModelNotReady:
    reference = names.reference(text)
    if reference is None:
        remedy = "Send the name of a model, or name@digest for one version."
        return NotFound(f"{quoted(text)} is not a reference to a model.", remedy=remedy)
    existing = conn.execute(select(model_names.c.name).where(model_names.c.tenant == tenant)).scalars().all()
    if reference.digest and reference.name in existing:
        detail = f"Model {reference.name} has no version {reference.digest}, or several."
        return NotFound(detail, remedy=f"GET /v1/models/{reference.name} lists its versions.")
    job = training_of(conn, tenant, reference.name)
    if job is not None:
        return ModelNotReady(
            f"Model {reference.name} is not ready: job {job} is queued or running.",
            remedy=f"Retry when /v1/jobs/{job} has succeeded.",
            retry_after=5,
            job=f"/v1/jobs/{job}",
        )
    remedy = catalog.name_hint(reference.name, existing) or "There are no models yet. POST /v1/trainings makes one."
    return NotFound(f"Model {reference.name} was not found.", remedy=remedy)
