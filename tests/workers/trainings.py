"""A small stored dataset, and training jobs run in this process."""

import hashlib
import io
from typing import Any

import numpy as np

from app.core.jobs import state as jobs
from app.core.store import blobs, integrity
from app.core.store.database import clock, encode_json, new_id, transaction
from app.core.store.tables import datasets
from workers.jobs.job import Result, RunningJob
from workers.jobs.kinds import runner_of

TENANT = "tests"


def store_dataset(name: str = "small", count: int = 24, size: int = 8, seed: int = 0, tenant: str | None = None) -> str:
    """Blurred random images of three classes; returns the digest."""
    draws = np.random.default_rng(seed)
    columns = {"train": count, "validation": count // 3}
    facts = {
        "layout": "labelled", "height": size, "width": size, "channels": 1, "classes": ["one", "two", "three"],
        "columns": {side: {"images": rows, "labels": rows} for side, rows in columns.items()},
    }  # fmt: skip
    head, files = encode_json(facts).encode(), {}
    for side, rows in columns.items():
        labels = draws.integers(0, 3, rows)
        images = (draws.random((rows, 1, size, size)) * 80 + 80 * labels[:, None, None, None]).astype(np.uint8)
        for column, array in {"images": images, "labels": labels}.items():
            file = io.BytesIO()
            np.save(file, array)
            files[f"{side}/{column}.npy"] = file.getvalue()
    digest = put_dataset(head, files)
    row = {"id": new_id(), "tenant": tenant or TENANT, "name": name, "digest": digest, "facts": facts}
    row |= {"layout": "labelled"}
    row |= {"source": "upload", "bytes": 1, "licence": "CC0", "attribution": "nobody"}
    with transaction() as conn:
        conn.execute(datasets.insert().values(**row, created_at=clock()))
    return digest


def put_dataset(head: bytes, files: dict[str, bytes]) -> str:
    """Stores facts and arrays as an import does; returns their digest."""
    hashes = [(name, hashlib.sha256(files[name]).digest()) for name in sorted(files)]
    digest = integrity.dataset_digest(head, hashes)
    for name, data in {**files, "facts.json": head}.items():
        blobs.put(f"datasets/{digest}/{name}", data)
    return digest


def accept(family: str = "tiny_autoencoder", *, kind: str = "training", **spec: Any) -> str:
    """A queued job; returns its id."""
    spec = {"family": family, "dataset": "small", "name": "mine", "seed": 1} | spec
    with transaction() as conn:
        job, _ = jobs.accept(conn, tenant=TENANT, kind=kind, spec=spec)
    return job["id"]


def attempt(job_id: str, job_class: type[RunningJob] = RunningJob) -> RunningJob:
    """Claims the job for this process."""
    with transaction() as conn:
        return job_class(jobs.claim(conn, job_id, "here"))


def finish(job: RunningJob, result: Result) -> dict[str, Any]:
    """Ends the job as its process would; returns the row."""
    job.flush()
    job.write(lambda conn: jobs.finish(conn, job.id, job.token, result.value, result.also))
    return row_of(job.id, job.tenant)


def measured(row: dict[str, Any]) -> dict[str, Any]:
    """The row of a finished training once its model has been measured."""
    measurement = row["result"]["measurement"]
    if measurement["status"] == "measuring":
        job = attempt(measurement["job"])
        finish(job, runner_of(job.kind)(job))
    return row_of(row["id"], row["tenant"])


def row_of(job_id: str, tenant: str = TENANT) -> dict[str, Any]:
    with transaction() as conn:
        return jobs.get(conn, tenant, job_id)
