"""Jobs without torch for the tests of the lifecycle; as a program, `workers.jobs.process` with these kinds."""

import os
import signal
import sys
import time
from pathlib import Path

from app.core import errors
from app.core.store.tables import workers
from workers.jobs.job import Heartbeat, Result, RunningJob, Stopped
from workers.jobs.kinds import RUNNERS

ROW = {"id": "made", "host": "h", "pid": 1, "queues": [], "models": [], "started_at": 1.0, "seen_at": 1.0}


def succeed(job: RunningJob) -> Result:
    job.progress(1, 2)
    job.progress(2, 2)
    job.metrics(2, {"loss": 0.5})
    return Result({"spec": job.spec}, also=lambda conn: conn.execute(workers.insert().values(**ROW)))


def obey(job: RunningJob) -> Result:
    """Runs until told to stop, then saves."""
    ready(job)
    while not job.stopping:
        time.sleep(0.01)
    job.checkpoint({"images": 7})
    raise Stopped


def ignore(job: RunningJob) -> Result:
    """A hung library call: no flag and no TERM gets through."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready(job)
    time.sleep(600)
    return Result()


def starved(job: RunningJob) -> Result:
    """Computes, but no heartbeat comes in time."""
    silence()
    while True:
        sum(range(10_000))


def hung(job: RunningJob) -> Result:
    """Neither computes nor sends heartbeats."""
    silence()
    time.sleep(600)
    return Result()


def silence() -> None:
    """Stops the heartbeats, and with them the CPU time that they take."""
    Heartbeat.beat = lambda self: time.sleep(600)
    time.sleep(0.5)


def stop_unasked(job: RunningJob) -> Result:
    raise Stopped


def vanish(job: RunningJob) -> Result:
    os._exit(0)


def crash(job: RunningJob) -> Result:
    os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(60)
    return Result()


def fail(job: RunningJob) -> Result:
    """Raises what the spec names."""
    raise {
        "config": errors.InvalidConfig("latents must be positive", field="/config/latents"),
        "memory": MemoryError(),
        "disk": OSError(28, "No space left on device"),
        "bug": KeyError("/secret/path"),
    }[job.spec["error"]]


def ready(job: RunningJob) -> None:
    """Tells the test that the job runs, and as which process."""
    path = Path(job.spec["ready"])
    path.with_suffix(".tmp").write_text(str(os.getpid()))
    path.with_suffix(".tmp").rename(path)


KINDS = {
    name: f"tests.workers.jobs.bodies:{name}"
    for name in ("succeed", "obey", "ignore", "stop_unasked", "vanish", "crash", "fail", "starved", "hung")
} | {"training": "tests.workers.jobs.bodies:obey"}

if __name__ == "__main__":
    from workers.jobs import process as job

    RUNNERS.update(KINDS)
    sys.exit(job.main())
