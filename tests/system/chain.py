"""A job of hashes in place of a training, for tests of a real worker: it starts without torch and lasts as told.

`celery -A tests.system.chain worker` runs its jobs; `python -m tests.system.chain front STEPS SECONDS` orders one and
rings; `python -m tests.system.chain JOB` is the process of a job. Importing it replaces the runner of trainings.
"""

import hashlib
import json
import sys
import time

from app.core.jobs import state
from app.core.jobs.sweeper import Sweeper
from app.core.store import blobs
from app.core.store.database import transaction
from workers.jobs import process
from workers.jobs.job import Result, RunningJob, Stopped
from workers.jobs.kinds import RUNNERS
from workers.jobs.slot import Slot
from workers.main import celery as celery

CHECKPOINT_STEPS = 4

Slot.command = (sys.executable, "-m", "tests.system.chain")
RUNNERS["training"] = "tests.system.chain:run"


def run(job: RunningJob) -> Result:
    """As many hashes as `steps`, each of the one before, with a checkpoint after every few."""
    steps, start, value = job.spec["steps"], 0, ""
    if job.last_checkpoint:
        start, value = json.loads(blobs.get(job.last_checkpoint["key"]))
    for step in range(start, steps):
        time.sleep(job.spec["step_seconds"])
        value = hashlib.sha256(f"{step} {value}".encode()).hexdigest()
        job.progress(step + 1, steps)
        if (step + 1) % CHECKPOINT_STEPS == 0 or job.stopping:
            key = job.artifact_key(f"{step + 1}.json")
            blobs.put(key, json.dumps([step + 1, value]).encode())
            job.checkpoint({"key": key, "images": step + 1})
        if job.stopping:
            raise Stopped
    return Result({"value": value})


def order(steps: int, step_seconds: float) -> None:
    """Accepts a job as a web front does: the sweeper rings at once."""
    sweeper = Sweeper()
    sweeper.start()
    with transaction() as conn:
        state.accept(conn, tenant="t", kind="training", spec={"steps": steps, "step_seconds": step_seconds})
    sweeper.wake_event.set()
    time.sleep(60)


if __name__ == "__main__":
    if sys.argv[1] == "front":
        order(int(sys.argv[2]), float(sys.argv[3]))
    else:
        sys.exit(process.main())
