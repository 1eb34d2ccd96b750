"""Slots: a worker runs one job of each queue (train, light) at a time, each in a process of its own that it watches.

The table decides which job is next; a message only wakes the slot. Nothing here imports torch.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

import structlog
from sqlalchemy import Engine

from app.core.errors import AnamorphError, DeadlineExceeded, WorkerLost
from app.core.jobs import state as jobs
from app.core.settings import settings
from app.core.store.database import reading, transaction

log = structlog.get_logger(__name__)

COMMAND = (sys.executable, "-m", "workers.jobs.process")


class Slot(threading.Thread):
    """Claims and runs jobs of one queue until `stop`."""

    command: Sequence[str] = COMMAND

    def __init__(self, queue: str, worker: str, bind: Engine | None = None):
        super().__init__(name=f"slot-{queue}", daemon=True)
        self.queue, self.worker, self.bind = queue, worker, bind
        self.stopping = threading.Event()
        self._wake_event = threading.Event()

    def wake(self) -> None:
        """Looks for a job now, or after the present one."""
        self._wake_event.set()

    def stop(self) -> None:
        self.stopping.set()
        self._wake_event.set()

    def run(self) -> None:
        while not self.stopping.is_set():
            try:
                while not self.stopping.is_set() and (claim := self._next()):
                    ProcessWatch(claim, self.bind, self.command).until_ended(self.stopping)
            except AnamorphError as error:
                log.warning("slot_waits", queue=self.queue, error=error.detail)
            except Exception:
                log.exception("slot_failed", queue=self.queue)
            # also looks at intervals: an idle slot finds work without the broker
            self._wake_event.wait(settings().sweep_seconds)
            self._wake_event.clear()

    def _next(self) -> jobs.Claim | None:
        with reading(self.bind) as conn:
            if jobs.next_due(conn, self.queue) is None:
                return None
        with transaction(self.bind) as conn:
            return jobs.claim_oldest(conn, self.queue, self.worker)


class ProcessWatch:
    """The process of one job: starts it, stops or kills it, and writes the end of the job if the process did not."""

    def __init__(self, claim: jobs.Claim, bind: Engine | None = None, command: Sequence[str] = COMMAND):
        self.claim, self.bind = claim, bind
        self.process = subprocess.Popen(
            [*command, claim.id], env=environment(claim), stdin=subprocess.DEVNULL, close_fds=True
        )
        self.reason: str | None = None
        self.kill_at = float("inf")
        self.checked_at = 0.0

    def until_ended(self, stopping: threading.Event) -> None:
        log.info("job_started", job=self.claim.id, attempt=self.claim.attempt, pid=self.process.pid)
        while (status := self._wait(0.1)) is None:
            if stopping.is_set() and self.reason != "release":
                self.process.terminate()
                self._set_reason("release", settings().release_grace_seconds)
            if self.reason is None and time.monotonic() - self.checked_at > 1:
                self._check()
            if time.monotonic() > self.kill_at:
                log.warning("job_killed", job=self.claim.id, reason=self.reason)
                self.process.kill()
        log.info("job_ended", job=self.claim.id, attempt=self.claim.attempt, status=status, reason=self.reason)
        self._write_end(status)

    def _wait(self, seconds: float) -> int | None:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def _set_reason(self, reason: str, seconds: float) -> None:
        self.reason, self.kill_at = reason, time.monotonic() + seconds

    def _check(self) -> None:
        """Reads whether the job should stop. Its own heartbeat tells it so; the watch makes sure that it does."""
        self.checked_at = time.monotonic()
        try:
            with reading(self.bind) as conn:
                beat = jobs.read_beat(conn, self.claim.id, self.claim.token)
        except AnamorphError:
            return
        if beat is None:
            self._set_reason("over", settings().cancel_grace_seconds)
        elif beat.cancel or beat.late:
            self._set_reason("cancel" if beat.cancel else "late", settings().cancel_grace_seconds)

    def _write_end(self, status: int) -> None:
        """Writes the end of the job, unless the process did, which then gave up the token."""
        for pause in (0.5, 1, 2, 4, 0):
            try:
                with transaction(self.bind) as conn:
                    self._end_of(status)(conn)
                return
            except jobs.LeaseLost:
                return
            except AnamorphError as error:
                log.warning("ending_not_written", job=self.claim.id, error=error.detail)
                time.sleep(pause)

    def _end_of(self, status: int) -> Callable:
        job = self.claim.id, self.claim.token
        if self.reason == "release":
            return lambda conn: jobs.release(conn, *job)
        if self.reason == "cancel":
            return lambda conn: jobs.confirm_cancel(conn, *job)
        if self.reason == "late":
            late = DeadlineExceeded("The job did not end before its deadline.").problem()
            return lambda conn: jobs.fail(conn, *job, late)
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        lost = WorkerLost(f"The job's process {how} without a reason.", remedy="See the log of the worker.")
        return lambda conn: jobs.fail_attempt(conn, *job, lost.problem())


def environment(claim: jobs.Claim) -> dict[str, str]:
    """The environment of the job's process: its token, threads and niceness, and the settings of this worker."""
    options = settings()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = str(options.train_threads or max(1, cores - 1))
    return {
        **os.environ,
        "ANAMORPH_JOB_TOKEN": claim.token,
        "ANAMORPH_JOB_PARENT": str(os.getpid()),
        "ANAMORPH_JOB_NICE": str(options.job_niceness if claim.queue == "train" else 0),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
    }
