"""The kill drill's job: a chain of hashes in place of a training, resumed from checkpoints in the blob store.

Run like `workers.jobs.process`, with one more kind of job. Each step also leaves a line in a side file that no fence
protects,
so that the checker sees who computed when, whatever the database was told.
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path

from app.core.store import blobs
from workers.jobs.job import Result, RunningJob, Stopped
from workers.jobs.kinds import RUNNERS

CHECKPOINT_STEPS = 4


def chain(seed: int, steps: int, start: int = 0, value: str = "") -> str:
    """The right answer, `steps` hashes on from (start, value)."""
    for step in range(start, steps):
        value = hashlib.sha256(f"{seed} {step} {value}".encode()).hexdigest()
    return value


def run(job: RunningJob) -> Result:
    seed, steps, pause = job.spec["seed"], job.spec["steps"], job.spec["step_seconds"]
    start, value = 0, ""
    if job.last_checkpoint:
        start, value = json.loads(blobs.get(job.last_checkpoint["key"]))
    for step in range(start, steps):
        note(job, step)
        time.sleep(pause)
        value = chain(seed, step + 1, step, value)
        job.progress(step + 1, steps)
        if (step + 1) % CHECKPOINT_STEPS == 0 or job.stopping:
            job.metrics(step + 1, {"value": int(value[:8], 16)})
            save(job, step + 1, value)
        if job.stopping:
            raise Stopped
    return Result({"value": value})


def save(job: RunningJob, step: int, value: str) -> None:
    key = job.artifact_key(f"{step}.json")
    blobs.put(key, json.dumps([step, value]).encode())
    job.checkpoint({"key": key, "images": step})


def note(job: RunningJob, step: int) -> None:
    line = f"{time.monotonic()} {job.id} {job.attempt} {step} {os.getpid()}\n"
    handle = os.open(Path(os.environ["DRILL_FOLDER"]) / "steps.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(handle, line.encode())
    os.close(handle)


if __name__ == "__main__":
    from workers.jobs import process as job

    RUNNERS["training"] = RUNNERS["drill"] = "tests.system.drill_job:run"
    sys.exit(job.main())
