"""Claims about a worker's memory and about the import of a large set, each measured in a process of its own."""

import io
import multiprocessing
import os
import re
import tempfile
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from app.core.jobs import state as jobs
from app.core.store import blobs
from app.core.store.database import new_id, transaction
from app.core.store.keys import LOCAL
from tests.benchmarks.claims import Found, Row, Subject, at_most
from workers.jobs.job import RunningJob

IMAGES, SIDE = 60_000, 28
UPDATES = 60


def peak() -> float:
    """Most memory this process has had, in GB, files mapped into it included."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 2**20


def apart(run: Callable, *arguments):
    """`run(*arguments)` in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(run, *arguments).result()


def claimed(kind: str, spec: dict) -> RunningJob:
    with transaction() as conn:
        job, _ = jobs.accept(conn, tenant=LOCAL, kind=kind, spec=spec)
        return RunningJob(jobs.claim(conn, job["id"], "benchmark"))


def trained(dataset: str) -> tuple[float, float]:
    """Peak of a worker that trains a VAE for a while and measures it, and the CPU seconds."""
    from workers.jobs.kinds.training import run_training

    config = {"batch_size": 128, "images": 128 * UPDATES}
    run_training(claimed("training", {"family": "vae", "dataset": dataset, "config": config, "name": "memory"}))
    return peak(), time.process_time()


def worker_peak(subject: Subject) -> Found:
    highest, seconds = apart(trained, subject.name)
    size = subject.source.bytes / 2**30
    note = f"VAE, {UPDATES} updates of 128 and all that follows; {size:.2f} GB of images, {seconds:.0f} CPU s"
    return Found(highest - size, {"dataset": size}, note)


MEMORY = Row(
    "worker-memory",
    "The peak of a worker that trains, beyond the size of its dataset",
    "GB",
    at_most(1.5),
    worker_peak,
)


def written(images: int) -> str:
    """An npz of random digits-sized images and labels as an upload; gives its key."""
    draws = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "large.npz"
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, array in {
                "images": draws.integers(0, 256, (images, SIDE, SIDE), dtype=np.uint8),
                "labels": draws.integers(0, 10, images),
            }.items():
                out = io.BytesIO()
                np.save(out, array)
                archive.writestr(f"{name}.npy", out.getvalue())
        key = f"uploads/{new_id()}"
        blobs.put(key, file)
    return key


def imported(name: str, upload: str) -> tuple[float, float]:
    """Peak and CPU seconds of the job that imports an upload, its row written."""
    from workers.jobs.kinds.dataset import run_dataset

    started = time.process_time()
    job = claimed("dataset", {"name": name, "format": "npz", "upload": upload})
    result = run_dataset(job)
    job.write(lambda conn: jobs.finish(conn, job.id, job.token, result.value, result.also))
    return peak(), time.process_time() - started


def large_import(subject: Subject) -> Found:
    name = f"large-{os.getpid()}"
    highest, seconds = apart(imported, name, written(IMAGES))
    training, _ = apart(trained, name)
    size = IMAGES * SIDE**2 / 2**30
    note = (
        f"{IMAGES} random {SIDE}x{SIDE} images ({size:.2f} GB) as npz; the importing process took {highest:.2f} GB, "
        f"one that then trained on them {training:.2f} GB"
    )
    return Found(seconds, {}, note)


IMPORT = Row(
    "import-60000",
    "60 000 images are imported quickly",
    "CPU s",
    at_most(60),
    large_import,
)
