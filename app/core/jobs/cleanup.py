"""Deletes what is no longer needed: arrays of deleted datasets, old checkpoints, uploads, folders of killed imports."""

import shutil
import time
import uuid
from collections import Counter
from contextlib import suppress
from pathlib import Path
from tempfile import gettempdir

from sqlalchemy import ColumnElement, Connection, Engine, and_, delete, func, insert, select, text, update

from app.core.jobs.checkpoints import CHECKPOINT
from app.core.jobs.queries import UUID
from app.core.settings import settings
from app.core.store import blobs
from app.core.store.database import clock, new_id, reading, transaction
from app.core.store.tables import datasets, ended_jobs, jobs

KEEP_SECONDS = 86_400
"""How long the arrays of a deleted dataset are kept, for trainings that are resumed."""
IMPORT_FOLDER = "anamorph-import-"


def clean(bind: Engine | None = None) -> None:
    with reading(bind) as conn:
        digests, ended = forgotten(conn), outlived(conn)
    with transaction(bind, durable=False) as conn:
        sum_ended(conn)
    for digest in digests:
        forget(digest, bind)
    for job_id in ended:
        drop_checkpoints(job_id, bind)
    remove_uploads(bind)
    remove_import_folders()


def forgotten(conn: Connection) -> list[str]:
    """Digests of datasets whose rows, of all tenants, were deleted more than KEEP_SECONDS ago."""
    all_deleted = func.count() == func.count(datasets.c.deleted_at)
    long_ago = func.max(datasets.c.deleted_at) < clock() - KEEP_SECONDS
    return list(
        conn.execute(select(datasets.c.digest).group_by(datasets.c.digest).having(all_deleted, long_ago)).scalars()
    )


def forget(digest: str, bind: Engine | None = None) -> None:
    """Deletes the arrays and their rows, unless a job needs them or they have a new row.

    The rows are locked meanwhile; whoever adds a row locks them too, see `hold`.
    """
    with transaction(bind) as conn:
        hold(conn, digest)
        if digest not in forgotten(conn) or _needed(conn, digest):
            return
        blobs.delete_prefix(f"datasets/{digest}/facts.json")  # without it the rest counts as absent
        blobs.delete_prefix(f"datasets/{digest}")
        conn.execute(delete(datasets).where(datasets.c.digest == digest))


def hold(conn: Connection, digest: str) -> None:
    """Locks the rows of a dataset until the transaction ends: nobody else deletes the arrays or adds a row."""
    rows = select(datasets.c.id).where(datasets.c.digest == digest).order_by(datasets.c.id)
    conn.execute(rows.with_for_update()).all()


def _needed(conn: Connection, digest: str) -> bool:
    """Whether a queued or running job reads these arrays."""
    rows = conn.execute(select(datasets.c.tenant, datasets.c.name).where(datasets.c.digest == digest))
    names = {tuple(row) for row in rows}
    active = select(jobs.c.tenant, jobs.c.spec, jobs.c.checkpoint).where(jobs.c.state.in_(("queued", "running")))
    return any(
        (job.tenant, job.spec.get("dataset")) in names or (job.checkpoint or {}).get("dataset") == digest
        for job in conn.execute(active)
    )


def outlived(conn: Connection) -> list[str]:
    """Ended jobs with checkpoints that were not resumed within `checkpoint_days`."""
    return list(conn.execute(select(jobs.c.id).where(_outlived()).order_by(jobs.c.finished_at).limit(1000)).scalars())


def _outlived() -> ColumnElement[bool]:
    old = jobs.c.finished_at < clock() - settings().checkpoint_days * 86_400
    # the text of the index, so that it is used
    return and_(text("checkpoint IS NOT NULL"), old)  # only a job that ended has finished_at


def drop_checkpoints(job_id: str, bind: Engine | None = None) -> None:
    """Deletes the checkpoints of a job, also of killed attempts; it can then be resumed only from the beginning.

    The row is locked meanwhile, so that nobody resumes it. Nothing is deleted while a queued fork needs them.
    """
    with transaction(bind) as conn:
        mine = select(jobs.c.id).where(jobs.c.id == job_id, _outlived()).with_for_update()
        if conn.execute(mine).first() is None or _forked(conn, job_id):
            return
        for key, _ in blobs.list(f"jobs/{job_id}"):
            if key.rsplit("/", 1)[-1].startswith(CHECKPOINT):
                blobs.delete_prefix(key)
        conn.execute(update(jobs).where(jobs.c.id == job_id).values(checkpoint=None))


def _forked(conn: Connection, job_id: str) -> bool:
    """Whether a queued or running job is a fork of this one."""
    active = select(jobs.c.spec).where(jobs.c.kind == "training", jobs.c.state.in_(("queued", "running")))
    forks = (spec.get("fork_from") for spec in conn.execute(active).scalars())
    return any((fork["job"] if isinstance(fork, dict) else fork) == job_id for fork in forks)


def remove_uploads(bind: Engine | None = None, age_seconds: float = KEEP_SECONDS) -> None:
    """Deletes uploads that no job will read: of requests without an answer, and of jobs canceled before they began."""
    before = int((time.time() - age_seconds) * 1000)
    ids = (key.removeprefix("uploads/") for key, _ in blobs.walk("uploads"))
    old = {f"uploads/{made}" for made in ids if UUID.fullmatch(made) and uuid.UUID(made).int >> 80 < before}
    if not old:
        return
    with reading(bind) as conn:
        active = select(jobs.c.spec).where(jobs.c.state.in_(("queued", "running")))
        old -= {spec.get("upload") for spec in conn.execute(active).scalars()}
    for key in old:
        blobs.delete_prefix(key)


def sum_ended(conn: Connection) -> None:
    """Replaces the rows that count ended jobs by one per kind and state."""
    gone = conn.execute(delete(ended_jobs).returning(ended_jobs.c.kind, ended_jobs.c.state, ended_jobs.c.change))
    sums: Counter = Counter()
    for kind, state, change in gone:
        sums[kind, state] += change
    for (kind, state), change in sums.items():
        conn.execute(insert(ended_jobs).values(id=new_id(), kind=kind, state=state, change=change))


def remove_import_folders(age_seconds: float = KEEP_SECONDS) -> None:
    """Deletes temporary folders of imports on this machine that were not written to for `age_seconds`."""
    for folder in Path(gettempdir()).glob(f"{IMPORT_FOLDER}*"):
        with suppress(OSError):  # deleted by another process, or of another user
            written = max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
            if not folder.is_symlink() and written < time.time() - age_seconds:
                shutil.rmtree(folder)
