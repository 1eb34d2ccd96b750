"""The watch of a job's process: starts it, holds its lease while it cannot, stops it, and writes an end it did not."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

import structlog
from sqlalchemy import Engine

from app.core import machine
from app.core.errors import AnamorphError, OutOfMemory, WorkerLost
from app.core.jobs import state as jobs
from app.core.settings import settings
from app.core.store.database import reading, transaction
from workers.jobs.device_pool import device_environment
from workers.jobs.job import LEASE_LOST, late_error
from workers.jobs.spare import Spares

log = structlog.get_logger(__name__)

COMMAND = (sys.executable, "-m", "workers.jobs.process")
HELD_LEASES = 10
"""Leases for which the watch holds the lease of a process that does not."""


class ProcessWatch:
    """The process of one job, which holds its lease by its own heartbeat.

    The watch holds the lease instead before the first heartbeat, and later while the process is starved: it computes,
    but its heartbeats do not come in time.
    """

    def __init__(
        self,
        claim: jobs.Claim,
        bind: Engine | None = None,
        command: Sequence[str] = COMMAND,
        devices: Sequence[str] = (),
        spares: Spares | None = None,
    ):
        self.claim, self.bind, self.lease = claim, bind, settings().lease_seconds
        self.oom_kills = machine.oom_kills()
        self.clocks = machine.Clocks(self.lease / 2)
        self.process = (spares or Spares(command)).start(claim.id, environment(claim, devices))
        self.reason: str | None = None
        self.kill_at = float("inf")
        self.beat: jobs.Beat | None = None
        self.checked_at = self.heard_at = time.monotonic()
        self.renewed_until: float | None = None
        self.cpu: float | None = None

    def until_ended(self, stopping: threading.Event, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Watches the process to its end; `meanwhile` is called about once a second."""
        log.info("job_started", job=self.claim.id, attempt=self.claim.attempt, pid=self.process.pid)
        killed = False
        while (status := self._wait(0.1)) is None:
            if stopping.is_set() and self.reason != "release":
                self.process.terminate()
                self._set_reason("release", settings().release_grace_seconds)
            if self.reason is None and time.monotonic() - self.checked_at > min(1, self.lease / 6):
                self._check()
                meanwhile()
            if time.monotonic() > self.kill_at and not killed:
                log.warning("job_killed", job=self.claim.id, reason=self.reason)
                self.process.kill()
                killed = True
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
                state = jobs.get(conn, self.claim.tenant, self.claim.id)["state"]
        except AnamorphError:
            self.clocks.failed = True
            return
        if beat is None:  # either it is about to exit, or it computes what nobody will take
            self._set_reason("over", settings().cancel_grace_seconds if state in jobs.TERMINAL else 0)
            return
        self.beat = beat
        if beat.cancel or beat.late:
            self._set_reason("cancel" if beat.cancel else "late", settings().cancel_grace_seconds)
        self._hold_lease(beat, self.clocks.look(beat.now))

    def _hold_lease(self, beat: jobs.Beat, missing: str | None) -> None:
        """Renews a lease of which less than half is left. `missing`: why nobody could renew it for a while."""
        if beat.begun and beat.lease_until != self.renewed_until and beat.lease_left > self.lease / 2:
            self.heard_at = time.monotonic()
        if beat.lease_left > self.lease / 2:
            return
        cpu = machine.cpu_seconds(self.process.pid)
        working = cpu is None or cpu != self.cpu
        patient = time.monotonic() - self.heard_at < HELD_LEASES * self.lease
        self.cpu = cpu
        if missing or (patient and (working or not beat.begun)) or (working and not beat.begun):
            self._renew(missing or ("starved" if beat.begun else "not begun"))
        elif working or not beat.begun:
            self._set_reason("starved", 0)

    def _renew(self, why: str) -> None:
        try:
            with transaction(self.bind, durable=False) as conn:
                beat = jobs.heartbeat(conn, self.claim.id, self.claim.token)
        except AnamorphError:
            return
        self.renewed_until = beat and beat.lease_until
        log.warning("lease_held", job=self.claim.id, attempt=self.claim.attempt, why=why)

    def _write_end(self, status: int) -> None:
        """Writes the end of the job, unless the process did, which then gave up the token. Waits for the database."""
        end, pause, deadline = self._end_of(status), 0.5, time.monotonic() + max(60, HELD_LEASES * self.lease)
        while time.monotonic() < deadline:
            try:
                with transaction(self.bind) as conn:
                    end(conn)
                return
            except jobs.LeaseLost:
                return
            except AnamorphError as error:
                log.warning("ending_not_written", job=self.claim.id, error=error.detail)
                time.sleep(pause)
                pause = min(2 * pause, 4)

    def _end_of(self, status: int) -> Callable:
        job = self.claim.id, self.claim.token
        if self.reason == "release":
            return lambda conn: jobs.release(conn, *job)
        if self.reason == "cancel":
            return lambda conn: jobs.confirm_cancel(conn, *job)
        if self.reason == "late":
            return lambda conn: jobs.fail(conn, *job, late_error(self.beat.too_long).problem())
        if status == LEASE_LOST:  # it stopped because the database did not answer for a lease: nobody's failure
            return lambda conn: jobs.release(conn, *job, why="lease-lost")
        return lambda conn: jobs.fail_attempt(conn, *job, self._loss(status).problem())

    def _loss(self, status: int) -> AnamorphError:
        """The error of a process that ended without writing why."""
        began = "" if self.beat and self.beat.begun else " before its first heartbeat"
        if self.reason == "starved":
            return WorkerLost(
                f"The job's process got too little of the CPU: no heartbeat for {HELD_LEASES} leases{began}.",
                remedy="Run fewer jobs at a time on this machine, or raise ANAMORPH_LEASE_SECONDS.",
                cause="starved",
            )
        if status == -signal.SIGKILL and machine.oom_kills() > self.oom_kills:
            return OutOfMemory(
                f"The system killed the job's process{began} because memory ran out.",
                remedy="Use smaller images, a smaller batch or a smaller network, or a worker with more memory.",
                cause="out-of-memory",
            )
        if status < 0:
            return WorkerLost(
                f"The job's process was killed by signal {-status} ({_name(-status)}){began}.",
                remedy="See the log of the worker, and whether somebody or the system killed the process.",
                cause="killed",
            )
        return WorkerLost(
            f"The job's process ended with status {status}{began} without a reason.",
            remedy="See the log of the worker.",
            cause="ended",
        )


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def environment(claim: jobs.Claim, devices: Sequence[str] = ()) -> dict[str, str]:
    """The environment of the job's process: its token, threads, niceness and devices, and the settings of this worker.

    Jobs of several queues run at the same time: a training gets all cores but one, at low priority, others half.
    """
    brisk = claim.queue == "light" and claim.kind != "measurement"
    return {
        **os.environ,
        **device_environment(devices),
        **shared_environment(claim.queue),
        "ANAMORPH_JOB_TOKEN": claim.token,
        **({"ANAMORPH_JOB_NICE": "0"} if brisk else {}),
    }


def shared_environment(queue: str) -> dict[str, str]:
    """What the processes of all jobs of a queue get."""
    options = settings()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores - 1 if queue == "train" else cores // 2)
    train, infer = options.train_threads or threads, options.infer_threads or threads
    return {
        "ANAMORPH_JOB_PARENT": str(os.getpid()),
        "ANAMORPH_JOB_NICE": str(options.job_niceness),
        "ANAMORPH_TRAIN_THREADS": str(train),
        "ANAMORPH_INFER_THREADS": str(infer),
        "OMP_NUM_THREADS": str(train),
        "MKL_NUM_THREADS": str(train),
    }
