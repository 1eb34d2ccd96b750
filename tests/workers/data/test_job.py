"""The job of kind "dataset" with a real database and a real state machine, from queued row to dataset row."""

import numpy as np
import pytest
from sqlalchemy import select, update

from app.core.catalog.builtins import BUILTINS
from app.core.errors import Conflict, Unavailable
from app.core.jobs import state as jobs
from app.core.store import blobs
from app.core.store.database import reading, transaction
from app.core.store.tables import datasets
from app.core.store.tables import jobs as jobs_table
from tests.workers.pictures import npz_file, pixels, png, zip_file
from workers.builtins import openmoji
from workers.data import ensure_builtin, open_dataset
from workers.data.importing import Origin, register
from workers.data.publish import Published
from workers.jobs.job import RunningJob, Stopped
from workers.jobs.kinds.dataset import run_dataset
from workers.jobs.lifecycle import end

pytestmark = pytest.mark.usefixtures("storage")


def started(engine, spec: dict, tenant: str = "t") -> RunningJob:
    with transaction(engine) as conn:
        job, _ = jobs.accept(conn, tenant=tenant, kind="dataset", spec=spec)
        return RunningJob(jobs.claim(conn, job["id"], "worker"), engine)


def ended(engine, job: RunningJob) -> dict:
    end(job)
    with reading(engine) as conn:
        return dict(conn.execute(select(jobs_table).where(jobs_table.c.id == job.id)).mappings().one())


def rows(engine) -> list[dict]:
    with reading(engine) as conn:
        return [dict(row) for row in conn.execute(select(datasets)).mappings()]


@pytest.fixture
def upload(tmp_path) -> dict:
    members = {f"{'ab'[index % 2]}x/{index}.png": png(index) for index in range(10)} | {"ax/bad.png": b"no"}
    blobs.put("uploads/1", zip_file(tmp_path / "u.zip", members))
    return {"upload": "uploads/1", "format": "zip", "name": "letters"}


def test_an_upload_becomes_a_dataset(engine, upload):
    job = ended(engine, started(engine, upload))
    assert job["state"] == "succeeded"
    result = job["result"]
    assert result["dataset"] == "letters" and result["count"] == 10 and result["classes"] == ["ax", "bx"]
    assert result["refused"] == [{"file": "ax/bad.png", "reason": result["refused"][0]["reason"]}]
    assert job["progress"]["images"] == job["progress"]["total"] == 11
    (row,) = rows(engine)
    assert (row["tenant"], row["name"], row["layout"], row["source"]) == ("t", "letters", "labelled", "upload")
    assert row["digest"] == result["digest"] and row["facts"] == result["facts"] == open_dataset(row["digest"]).facts
    assert row["bytes"] == sum(size for key, size in blobs.list(f"datasets/{row['digest']}") if "thumb" not in key)
    assert not blobs.exists("uploads/1")


def test_an_npz_becomes_a_dataset(engine, tmp_path):
    images = np.stack([pixels(index)[0] for index in range(6)])
    blobs.put("uploads/2", npz_file(tmp_path / "u.npz", images=images))
    job = ended(engine, started(engine, {"upload": "uploads/2", "format": "npz", "name": "n"}))
    assert job["state"] == "succeeded" and job["result"]["facts"]["columns"]["train"] == {"images": 5}


def test_a_useless_upload_fails_with_the_reasons_and_is_deleted(engine, tmp_path):
    blobs.put("uploads/3", zip_file(tmp_path / "u.zip", {"a.png": b"no"}))
    job = ended(engine, started(engine, {"upload": "uploads/3", "format": "zip", "name": "n"}))
    assert job["state"] == "failed" and job["error"]["code"] == "invalid-dataset"
    assert job["error"]["refused"][0]["file"] == "a.png"
    assert rows(engine) == [] and not blobs.exists("uploads/3")


def test_a_taken_name_is_a_conflict_also_when_it_is_taken_meanwhile(engine, upload, monkeypatch):
    late = started(engine, upload)
    result = run_dataset(late)
    with transaction(engine) as conn:
        register(conn, "t", "letters", Published("0" * 64, {"layout": "plain"}, 1), Origin("upload"))
    monkeypatch.setattr("workers.jobs.lifecycle.runner_of", lambda kind: lambda job: result)
    assert ended(engine, late)["error"]["code"] == "conflict"
    monkeypatch.undo()
    assert len(rows(engine)) == 1


def test_a_name_in_use_is_a_conflict_until_its_dataset_is_deleted(engine, upload):
    with transaction(engine) as conn:
        register(conn, "t", "letters", Published("0" * 64, {"layout": "plain"}, 1), Origin("upload"))
    job = started(engine, upload)
    with pytest.raises(Conflict, match="letters"):
        run_dataset(job)
    with transaction(engine) as conn:
        conn.execute(update(datasets).values(deleted_at=1.0))
    assert ended(engine, job)["state"] == "succeeded"


def test_other_tenants_may_use_the_same_name_and_share_the_arrays(engine, upload):
    blobs.put("uploads/2", blobs.get("uploads/1"))
    assert ended(engine, started(engine, upload))["state"] == "succeeded"
    assert ended(engine, started(engine, upload | {"upload": "uploads/2"}, tenant="other"))["state"] == "succeeded"
    assert len(rows(engine)) == 2 and len({row["digest"] for row in rows(engine)}) == 1


def test_stopping_is_honoured_between_images(engine, upload):
    job = started(engine, upload)
    job.released = True
    with pytest.raises(Stopped):
        run_dataset(job)
    assert blobs.exists("uploads/1")
    assert ended(engine, job)["state"] == "queued" and rows(engine) == []


def test_an_upload_that_is_gone_is_said(engine):
    job = ended(engine, started(engine, {"upload": "uploads/9", "format": "zip", "name": "n"}))
    assert job["error"]["code"] == "invalid-dataset" and "again" in job["error"]["remedy"]


def test_a_built_in_dataset_is_imported_by_a_job_and_on_demand(engine):
    result = ended(engine, started(engine, {"builtin": "digits8", "name": "mine"}))["result"]
    assert result["count"] == 1797
    row = ensure_builtin(engine, "t", "digits8")
    assert row["digest"] == result["digest"] and row["source"] == "builtin:digits8"
    assert row["attribution"] == BUILTINS["digits8"].attribution and row["licence"]
    assert ensure_builtin(engine, "t", "digits8")["id"] == row["id"]
    assert sorted(row["name"] for row in rows(engine)) == ["digits8", "mine"]
    unknown = ended(engine, started(engine, {"builtin": "cifar10", "name": "c"}))
    assert unknown["error"]["code"] == "not-found" and "mnist5k" in unknown["error"]["remedy"]


def test_a_built_in_set_is_drawn_at_the_size_of_the_spec(engine):
    result = ended(engine, started(engine, {"builtin": "glyphs-italic", "name": "large", "image_size": "40"}))["result"]
    assert (result["facts"]["height"], result["facts"]["width"], result["count"]) == (40, 40, 558)


def test_an_import_of_thousands_of_drawings_stops_between_two(engine, monkeypatch):
    drawn, flat = [], openmoji.flat
    job = started(engine, {"builtin": "openmoji", "name": "openmoji"})

    def draw(svg, size):
        drawn.append(size)
        job.released = len(drawn) >= 3
        return flat(svg, size)

    monkeypatch.setattr(openmoji, "flat", draw)
    assert ended(engine, job)["state"] == "queued" and len(drawn) == 3


def test_arrays_that_were_cleaned_away_meanwhile_are_imported_again(engine, upload):
    blobs.put("uploads/2", blobs.get("uploads/1"))
    first = ended(engine, started(engine, upload))["result"]["digest"]
    again = started(engine, upload | {"upload": "uploads/2", "name": "again"})
    result = run_dataset(again)
    blobs.delete_prefix(f"datasets/{first}")
    with pytest.raises(Unavailable, match="arrays of an equal dataset"), transaction(engine) as conn:
        result.also(conn)
    assert [row["name"] for row in rows(engine)] == ["letters"]
    assert ended(engine, again)["state"] == "succeeded" and blobs.exists(f"datasets/{first}/facts.json")


def test_importing_the_same_images_again_repairs_damaged_arrays(engine, upload):
    blobs.put("uploads/2", blobs.get("uploads/1"))
    digest = ended(engine, started(engine, upload))["result"]["digest"]
    (key, *_) = [key for key, _ in blobs.list(f"datasets/{digest}") if key.endswith("images.npy")]
    good = blobs.get(key)
    blobs.put(key, good[:-1] + bytes([good[-1] ^ 1]), create_only=False)
    again = ended(engine, started(engine, upload | {"upload": "uploads/2", "name": "again"}))
    assert again["result"]["digest"] == digest and blobs.get(key) == good
