"""The process of a job on the drill's stage: the real runner, slowed down, which notes what it does and may write."""

import os
import sys
import time

from tests.system.drill import stage
from tests.system.drill.history import entries, note

stage.prepare()

from app.core.jobs import state  # noqa: E402
from app.core.store import blobs  # noqa: E402
from workers.jobs import job as running  # noqa: E402
from workers.jobs import process  # noqa: E402

PAUSE_SECONDS = float(os.environ.get("DRILL_STEP_SECONDS", 0.05))
"""After each step: what makes a tiny training last long enough to be interrupted, at no cost."""
NOTE_SECONDS = 0.2
DEAF = bool(os.environ.get("DRILL_DEAF"))
"""A job that loses its lease does not notice, so that only the fences are left."""
ASLEEP_SECONDS = 6


class NotedJob(running.RunningJob):
    def __init__(self, claim, bind=None):
        super().__init__(claim, bind)
        self.noted = 0.0
        note("began", self.id, self.attempt)

    def step(self) -> None:
        """A runner has done some work."""
        if time.monotonic() - self.noted > NOTE_SECONDS:
            note("computing", self.id, self.attempt)
            self.noted = time.monotonic()
        before = time.monotonic()
        time.sleep(PAUSE_SECONDS)
        if DEAF and time.monotonic() - before > ASLEEP_SECONDS:
            self.struggle()

    def progress(self, *arguments, **options) -> None:
        self.step()
        super().progress(*arguments, **options)

    def flush(self) -> None:
        began, pending = time.monotonic(), self._progress
        super().flush()
        if pending is not None and self._progress is None:
            self.accepted("progress", began)

    def write(self, change, durable=True):
        began = time.monotonic()
        answer = super().write(change, durable)
        self.accepted("a write", began)
        return answer

    def struggle(self) -> None:
        """After a sleep: tries every kind of write, each by itself, as an attempt that noticed nothing would."""
        writes = (lambda: self.event("woke", {}), self.progress_at_once, self.point)
        for write in writes:
            try:
                write()
            except state.LeaseLost:
                note("fenced", self.id, self.attempt)

    def point(self) -> None:
        key = self.artifact_key("checkpoint-woke")
        blobs.put(key, b"", create_only=False)
        self.checkpoint({"kept": [{"key": key}]})

    def progress_at_once(self) -> None:
        self._progress = self._progress or {"images": 0, "total": 1, "eta_seconds": None}
        self.flush()

    def accepted(self, name: str, began: float) -> None:
        note("accepted", self.id, self.attempt, {"name": name, "began": began})


def noted_checkpoint(real):
    def add_checkpoint(conn, job_id, token, ref):
        real(conn, job_id, token, ref)
        missing = [key for key, _ in entries(ref) if not blobs.exists(key)]
        note("pointer", job_id, 0, missing)

    return add_checkpoint


def slow_training() -> None:
    """Each update of a training is a step."""
    from workers.jobs import training_log

    record = training_log.TrainingLog.record

    def slow_record(self, step):
        self.job.step()
        record(self, step)

    training_log.TrainingLog.record = slow_record


def main() -> int:
    from workers.jobs import lifecycle

    lifecycle.RunningJob = NotedJob
    state.add_checkpoint = noted_checkpoint(state.add_checkpoint)
    if DEAF:
        running.Heartbeat.abandon = lambda self: None
    real = lifecycle.runner_of

    def runner_of(kind):
        if kind == "training":
            slow_training()
        return real(kind)

    lifecycle.runner_of = runner_of
    return process.main()


if __name__ == "__main__":
    sys.exit(main())
