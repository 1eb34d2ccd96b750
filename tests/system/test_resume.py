"""Real training processes, killed at random moments: the curve and the weights are those of an undisturbed run."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import Engine

from app.core.errors import WorkerLost
from app.core.jobs import events
from app.core.jobs import state as jobs
from app.core.store.database import make_engine, reading, transaction
from workers.jobs.watch import environment

KILLS = 3
SECONDS = 300
# long enough to be killed a few times, small enough for a slow machine
SPECS = {
    "autoencoder": {"batch_size": 16, "images": 1600 * 16, "body": "mlp", "hidden": [32]},
    "classifier": {"batch_size": 16, "images": 800 * 16, "width": 4, "dropout": 0.5},
    # pool of past fakes, adaptive augmentation, average and remedies travel along
    "gan": {"batch_size": 16, "images": 200 * 16, "body": "mlp", "width": 8, "replay": 64, "r1": 0.0}
    | {"augment": "adaptive", "auto_remedy": True, "measure_every": 0},
    # two pools of past translations, and a rate that falls in the second half
    "cyclegan": {"batch_size": 2, "images": 40 * 2, "width": 4, "pool": 10, "generator": "unet"},
}
DATASETS = {"cyclegan": "openmoji-tone"}


@pytest.fixture
def engine(sqlite_url):
    engine = make_engine(sqlite_url)
    yield engine
    engine.dispose()


def accept(engine: Engine, family: str) -> str:
    spec = {
        "family": family,
        "dataset": DATASETS.get(family, "digits8"),
        "name": "mine",
        "seed": 7,
        "config": SPECS[family],
    }
    with transaction(engine) as conn:
        return jobs.accept(conn, tenant="tests", kind="training", spec=spec)[0]["id"]


def start(engine: Engine, job_id: str, folder: Path) -> tuple[jobs.Claim, subprocess.Popen]:
    with transaction(engine) as conn:
        claim = jobs.claim(conn, job_id, "here")
    settings = {
        "ANAMORPH_DATA_DIR": str(folder / "data"),
        "DATABASE_URL": str(engine.url),
        "ANAMORPH_CHECKPOINT_SECONDS": "0.1",
        "ANAMORPH_TRAIN_THREADS": "1",
        "ANAMORPH_JOB_NICENESS": "0",
    }
    command = [sys.executable, "-m", "workers.jobs.process", job_id]
    with log_of(folder).open("ab") as log:
        return claim, subprocess.Popen(command, env=environment(claim) | settings, stderr=log)


def log_of(folder: Path) -> Path:
    return folder / "log"


def row_of(engine: Engine, job_id: str) -> dict:
    with reading(engine) as conn:
        return jobs.get(conn, "tests", job_id)


def curve(engine: Engine, job_id: str) -> list[dict]:
    with reading(engine) as conn:
        return events.metrics(conn, job_id)


def kill_after_progress(engine: Engine, claim: jobs.Claim, process: subprocess.Popen, pause: float) -> bool:
    """Kills the process some time after it kept a checkpoint of its own; False when it ended before that."""
    before, deadline = (claim.checkpoint or {}).get("images"), time.monotonic() + SECONDS
    while (row_of(engine, claim.id)["checkpoint"] or {}).get("images") == before:
        assert time.monotonic() < deadline
        if process.poll() is not None:
            return False
        time.sleep(0.01)
    time.sleep(pause)
    os.kill(process.pid, signal.SIGKILL)
    if process.wait() != -signal.SIGKILL or row_of(engine, claim.id)["state"] == "succeeded":
        return False  # it had written its result and was only on its way out
    with transaction(engine) as conn:
        jobs.fail_attempt(conn, claim.id, claim.token, WorkerLost("killed").problem(), pause_seconds=0)
    return True


def complete(engine: Engine, job_id: str, folder: Path) -> dict:
    assert row_of(engine, job_id)["state"] == "queued", log_of(folder).read_text()
    _, process = start(engine, job_id, folder)
    process.wait(timeout=SECONDS)
    row = row_of(engine, job_id)
    assert row["state"] == "succeeded", log_of(folder).read_text()
    return row


@pytest.mark.timeout(600)  # processes that import torch: 200 s on a machine with twelve at work
@pytest.mark.parametrize("family", SPECS)
def test_a_training_killed_at_random_equals_an_unbroken_run(engine, tmp_path, family):
    wanted_id, job_id = accept(engine, family), accept(engine, family)
    wanted = complete(engine, wanted_id, tmp_path)
    draws, killed = random.Random(family), 0
    for _ in range(KILLS):
        claim, process = start(engine, job_id, tmp_path)
        if not kill_after_progress(engine, claim, process, draws.uniform(0, 0.2)):
            break
        killed += 1
    row = row_of(engine, job_id)
    if row["state"] != "succeeded":
        row = complete(engine, job_id, tmp_path)
    assert killed >= 2
    assert row["attempt"] >= killed
    assert row["result"]["version"] == wanted["result"]["version"]
    assert row["result"] == wanted["result"]
    assert curve(engine, job_id) == curve(engine, wanted_id)
