"""A service's storage of either kind, with a model, a dataset, a perturbation and jobs in it."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

from app.core.jobs import events
from app.core.jobs import state as jobs
from app.core.settings import settings
from app.core.store import blobs, integrity
from app.core.store import perturbations as perturbation_rows
from app.core.store.database import engine, new_id, now, reading, transaction
from app.core.store.tables import datasets
from app.core.store.tables import jobs as job_table
from tests.app.conftest import add_model, new_bucket, npy, png


@dataclass
class Filled:
    """Ids, and the keys of files with a digest: one of each kind."""

    model: str
    dataset: str
    jobs: dict[str, str]
    files: dict[str, str]


@pytest.fixture(params=["embedded", "servers"])
def storage(request, home, monkeypatch) -> Callable[..., None]:
    """SQLite and a folder, or PostgreSQL and S3. Changes settings, as `home`."""
    if request.param == "servers":
        url = request.getfixturevalue("postgres_database")
        home(DATABASE_URL=url, BLOBS_URL=new_bucket(request.getfixturevalue("s3"), monkeypatch))
    yield forgetting(home)
    engine().dispose()


def forgetting(home: Callable[..., None]) -> Callable[..., None]:
    def configure(**options: Any) -> None:
        home(**options)
        engine().dispose()
        engine.cache_clear()
        blobs.store.cache_clear()

    configure()
    return configure


@pytest.fixture
def filled(storage) -> Filled:
    model = add_model("v")
    dataset = store_dataset("squares")
    numbers = npy(np.ones((1, 8, 8)))
    facts = {"version": model, "model": "v", "dataset": "squares", "eps": 0.1, "notes": []}
    facts["digest"] = hashlib.sha256(integrity.undigested(facts) + numbers).hexdigest()
    for name, data in {"delta.npy": numbers, "picture.png": png(1), "examples.png": png(2)}.items():
        blobs.put(perturbation_rows.key(facts["digest"], name), data)
    with transaction() as conn:
        perturbation_rows.register(conn, "local", "shift", facts, 10, "j")
    found = {state: add_job(state) for state in ("succeeded", "running", "canceling", "queued", "failed")}
    files = {
        "weights": f"models/{model}/weights.safetensors",
        "card": f"models/{model}/card.json",
        "arrays": f"datasets/{dataset}/train/images.npy",
        "facts": f"datasets/{dataset}/facts.json",
        "delta": perturbation_rows.key(facts["digest"], "delta.npy"),
        "artifact": f"jobs/{found['succeeded']}/1/facts.json",
        "checkpoint": f"jobs/{found['running']}/1/checkpoint-8.safetensors",
    }
    return Filled(model, dataset, found, files)


def store_dataset(name: str) -> str:
    facts = {"layout": "plain", "height": 8, "width": 8, "channels": 1, "classes": None}
    facts["columns"] = {"train": {"images": 4}, "validation": {"images": 2}}
    arrays = {
        f"{side}/images.npy": npy(np.full((rows["images"], 1, 8, 8), 7)) for side, rows in facts["columns"].items()
    }
    head = integrity.dataset_head(facts)
    hashes = [(name, hashlib.sha256(arrays[name]).digest()) for name in integrity.dataset_files(facts)]
    digest = integrity.dataset_digest(head, hashes)
    for file, data in {**arrays, "facts.json": head, "thumbnails.png": png(3)}.items():
        blobs.put(f"datasets/{digest}/{file}", data)
    row = {"id": new_id(), "tenant": "local", "name": name, "digest": digest, "layout": "plain", "facts": facts}
    with transaction() as conn:
        conn.execute(datasets.insert().values(**row, source="upload", bytes=6400, created_at=now(conn)))
    return digest


def add_job(state: str) -> str:
    """A training in that state, with an event, a point of its curve and a file."""
    with transaction() as conn:
        job, _ = jobs.accept(conn, tenant="local", kind="training", spec={"dataset": "squares", "é": [1.5, None]})
        if state == "queued":
            return job["id"]
        claim = jobs.claim(conn, job["id"], "here")
        events.add_metrics(conn, job["id"], claim.token, 8, {"loss": 0.1})
        data = f"checkpoint of {job['id']}".encode()
        key = f"jobs/{job['id']}/1/checkpoint-8.safetensors"
        entry = {"key": key, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "images": 8}
        blobs.put(key, data)
        jobs.add_checkpoint(conn, job["id"], claim.token, {"images": 8, "kept": [entry], "marks": []})
        if state == "succeeded":
            name, text = f"jobs/{job['id']}/1/facts.json", b'{"a": 1}'
            blobs.put(name, text)
            sha256 = hashlib.sha256(text).hexdigest()
            result = {"artifacts": {"facts.json": name}, "sha256": {"facts.json": sha256}}
            jobs.finish(conn, job["id"], claim.token, result)
        elif state == "failed":
            jobs.fail(conn, job["id"], claim.token, {"code": "internal", "detail": "no"})
        elif state == "canceling":
            jobs.cancel(conn, "local", job["id"])
    return job["id"]


def job_states() -> dict[str, str]:
    with reading() as conn:
        return {row.id: row.state for row in conn.execute(select(job_table.c.id, job_table.c.state))}


def data_folder():
    return settings().data_dir
