"""What is cleaned away, and what is not: arrays of deleted datasets, folders of killed imports."""

import os
import threading
import time

import pytest
from sqlalchemy import insert, select, update

from app.core.jobs import cleanup, sweeper
from app.core.jobs import state as jobs
from app.core.store import blobs
from app.core.store import datasets as dataset_rows
from app.core.store.database import clock, new_id, reading, transaction
from app.core.store.tables import datasets
from app.core.store.tables import jobs as jobs_table

DIGEST, OTHER = "a" * 64, "b" * 64
DAY = 86_400


@pytest.fixture(autouse=True)
def storage(tmp_path, configure, monkeypatch):
    configure(BLOBS_URL=f"file://{tmp_path}/blobs")
    monkeypatch.setattr(cleanup, "gettempdir", lambda: str(tmp_path))


def add(engine, name="squares", tenant="t", digest=DIGEST) -> None:
    row = {"id": new_id(), "tenant": tenant, "name": name, "digest": digest, "layout": "plain", "facts": {}}
    with transaction(engine) as conn:
        conn.execute(insert(datasets).values(**row, source="upload", bytes=1, created_at=clock()))
    for file in ("facts.json", "train/images.npy", "thumbnails.png"):
        if not blobs.exists(f"datasets/{digest}/{file}"):
            blobs.put(f"datasets/{digest}/{file}", b"1")


def remove(engine, name="squares", tenant="t", ago: float = DAY + 60) -> None:
    with transaction(engine) as conn:
        dataset_rows.remove(conn, tenant, name)
        deleted = datasets.c.deleted_at > clock() - 10
        conn.execute(update(datasets).where(deleted).values(deleted_at=clock() - ago))


def kept(engine, digest=DIGEST) -> bool:
    """Whether the arrays are there after a round; rows and arrays go together."""
    sweeper.tidy(engine)
    there = len(blobs.list(f"datasets/{digest}"))
    with reading(engine) as conn:
        named = conn.execute(select(datasets.c.id).where(datasets.c.digest == digest)).first() is not None
    assert there == (3 if named else 0)
    return bool(there)


def test_arrays_are_deleted_a_day_after_their_dataset(engine):
    add(engine)
    add(engine, "others", digest=OTHER)
    assert kept(engine)
    remove(engine, ago=DAY - 60)
    assert kept(engine)
    with transaction(engine) as conn:
        conn.execute(update(datasets).where(datasets.c.deleted_at.is_not(None)).values(deleted_at=clock() - DAY - 60))
    assert not kept(engine) and kept(engine, OTHER)


def test_arrays_stay_while_any_tenant_has_them_and_a_day_after_the_last(engine):
    add(engine)
    add(engine, tenant="u")
    add(engine, "again")
    remove(engine)
    remove(engine, "again")
    assert kept(engine)
    remove(engine, tenant="u", ago=60)
    assert kept(engine)
    with transaction(engine) as conn:
        conn.execute(update(datasets).values(deleted_at=clock() - DAY - 60))
    assert not kept(engine)


@pytest.mark.parametrize("state", ["queued", "running"])
def test_arrays_stay_for_a_job_that_names_them(engine, state):
    add(engine)
    with transaction(engine) as conn:
        job, _ = jobs.accept(conn, tenant="t", kind="training", spec={"dataset": "squares"})
        claim = jobs.claim(conn, job["id"], "w") if state == "running" else None
    remove(engine)
    assert kept(engine)
    with transaction(engine) as conn:
        if claim:
            jobs.finish(conn, job["id"], claim.token, {})
        else:
            jobs.cancel(conn, "t", job["id"])
    assert not kept(engine)


def test_arrays_stay_for_a_training_whose_checkpoint_names_them(engine):
    """Its dataset's name means something else by now."""
    add(engine)
    with transaction(engine) as conn:
        job, _ = jobs.accept(conn, tenant="t", kind="training", spec={"dataset": "renamed"})
        conn.execute(update(jobs_table).values(checkpoint={"dataset": DIGEST, "images": 5}))
    remove(engine)
    assert kept(engine)
    with transaction(engine) as conn:
        jobs.cancel(conn, "t", job["id"])
    assert not kept(engine)


def test_a_job_of_another_tenant_does_not_keep_a_dataset_of_the_same_name(engine):
    add(engine)
    with transaction(engine) as conn:
        jobs.accept(conn, tenant="u", kind="training", spec={"dataset": "squares"})
    remove(engine)
    assert not kept(engine)


def test_adding_a_row_locks_the_arrays_until_the_commit(engine):
    """An import of the same images, between finding the arrays and its commit, and the janitor in the middle."""
    add(engine)
    remove(engine)
    held, done = threading.Event(), []

    def clean():
        held.wait(5)
        cleanup.forget(DIGEST, engine)
        done.append(True)

    thread = threading.Thread(target=clean)
    thread.start()
    with transaction(engine) as conn:
        cleanup.hold(conn, DIGEST)
        held.set()
        time.sleep(0.3)
        assert not done
        row = {"id": new_id(), "tenant": "u", "name": "new", "digest": DIGEST, "layout": "plain", "facts": {}}
        conn.execute(insert(datasets).values(**row, source="upload", bytes=1, created_at=clock()))
    thread.join(10)
    assert done and kept(engine)


def ended(engine, days: float, state: str = "succeeded") -> str:
    """A training that ended so long ago, with a checkpoint of its last attempt and one of a killed attempt."""
    with transaction(engine) as conn:
        job, _ = jobs.accept(conn, tenant="t", kind="training", spec={"dataset": "squares"})
        key = f"jobs/{job['id']}/2/checkpoint-64.safetensors"
        kept = {"images": 64, "kept": [{"key": key, "images": 64}], "marks": []}
        row = {"state": state, "checkpoint": kept, "finished_at": clock() - days * DAY}
        conn.execute(update(jobs_table).where(jobs_table.c.id == job["id"]).values(**row))
    for name in ("2/checkpoint-64.safetensors", "1/checkpoint-8.safetensors", "snapshots/64.png"):
        blobs.put(f"jobs/{job['id']}/{name}", b"1")
    return job["id"]


def left(engine, job_id: str) -> tuple[list[str], bool]:
    sweeper.tidy(engine)
    with reading(engine) as conn:
        row = jobs.get(conn, "t", job_id)
    return [key.rsplit("/", 1)[-1] for key, _ in blobs.list(f"jobs/{job_id}")], row["checkpoint"] is not None


@pytest.mark.parametrize("state", ["succeeded", "failed", "canceled"])
def test_checkpoints_are_deleted_a_week_after_the_end_of_a_training(engine, state):
    assert left(engine, ended(engine, 8, state)) == (["64.png"], False)
    assert left(engine, ended(engine, 6, state))[1]


def test_checkpoints_stay_for_a_resumed_training_and_for_a_queued_fork(engine):
    resumed, forked = ended(engine, 8, "failed"), ended(engine, 8)
    with transaction(engine) as conn:
        jobs.resume(conn, "t", resumed)
        jobs.accept(conn, tenant="t", kind="training", spec={"fork_from": {"job": forked, "images": 64}})
    assert left(engine, resumed)[1] and left(engine, forked)[1]


def test_folders_of_killed_imports_are_deleted_after_a_day(engine, tmp_path):
    old, busy, foreign = (tmp_path / name for name in ("anamorph-import-1", "anamorph-import-2", "other-1"))
    for folder in (old, busy, foreign):
        (folder / "train").mkdir(parents=True)
        for path in (folder / "images.raw", folder / "train" / "images.npy"):
            path.write_bytes(b"1")
        for path in (folder, *folder.rglob("*")):
            os.utime(path, (time.time() - 2 * DAY,) * 2)
    os.utime(busy / "images.raw")
    (tmp_path / "anamorph-import-3").symlink_to(foreign)
    sweeper.tidy(engine)
    assert not old.exists() and busy.exists() and (foreign / "images.raw").exists()


def test_uploads_that_no_job_reads_are_deleted_a_day_later(engine, monkeypatch):
    with transaction(engine) as conn:
        keys = {name: f"uploads/{new_id()}" for name in ("waiting", "canceled", "unanswered")}
        ids = {
            name: jobs.accept(conn, tenant="t", kind="dataset", spec={"upload": keys[name]})[0]["id"]
            for name in ("waiting", "canceled")
        }
        jobs.cancel(conn, "t", ids["canceled"])
    for key in keys.values():
        blobs.put(key, b"zip")
    sweeper.tidy(engine)
    assert all(blobs.exists(key) for key in keys.values())
    now = time.time
    monkeypatch.setattr(cleanup.time, "time", lambda: now() + DAY + 60)
    sweeper.tidy(engine)
    assert [name for name, key in keys.items() if blobs.exists(key)] == ["waiting"]
