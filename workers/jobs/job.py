"""The job as its runner sees it: its spec, whether to stop, and writes of progress that a lost lease refuses."""

import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import structlog
from sqlalchemy import Connection, Engine

from app.core.errors import AnamorphError, DeadlineExceeded, Unavailable
from app.core.jobs import events
from app.core.jobs import state as jobs
from app.core.settings import settings
from app.core.store import blobs
from app.core.store.database import transaction

log = structlog.get_logger(__name__)

LEASE_LOST = 75  # exit status: another worker may hold the job now; nothing was written
PROGRESS_SECONDS = 0.5
T = TypeVar("T")


def late_error(too_long: bool) -> DeadlineExceeded:
    """The error of a job that was stopped at its deadline or, `too_long`, at the limit of one run."""
    if not too_long:
        return DeadlineExceeded("The job did not end before its deadline.")
    return DeadlineExceeded(
        f"The job ran longer than {settings().max_job_seconds:g} s, the limit of one run.",
        remedy="Ask for less work, or resume the job if it keeps checkpoints. ANAMORPH_MAX_JOB_SECONDS sets the limit.",
        cause="too-long",
    )


class Stopped(Exception):
    """Raised by a runner that stops because `job.stopping` is set, after saving its checkpoint."""


@dataclass(frozen=True)
class Result:
    """The result of a job. `also` writes rows (a model, a dataset) in the transaction that ends the job."""

    value: dict[str, Any] = field(default_factory=dict)
    also: Callable[[Connection], None] | None = None


class RunningJob:
    """A runner reads `stopping` between two steps; if it is set, it saves a checkpoint and raises Stopped."""

    def __init__(self, claim: jobs.Claim, bind: Engine | None = None):
        self.id, self.tenant, self.kind, self.spec = claim.id, claim.tenant, claim.kind, claim.spec
        self.attempt, self.token = claim.attempt, claim.token
        self.last_checkpoint = claim.checkpoint
        self.bind = bind
        self.canceled = self.late = self.too_long = self.released = False
        self.ending = False  # the end is being written, which gives up the token
        self._progress: dict[str, Any] | None = None
        self._progress_at = float("-inf")

    @property
    def stopping(self) -> Literal["cancel", "release"] | None:
        """ "cancel": a client canceled, or the deadline passed. "release": this worker stops, another will continue."""
        if self.canceled or self.late:
            return "cancel"
        return "release" if self.released else None

    def stop_if_asked(self) -> None:
        if self.stopping:
            raise Stopped(self.stopping)

    def progress(self, images: int, total: int, eta_seconds: float | None = None, **facts: Any) -> None:
        """Sets the progress. Cheap enough to call after every step: it is written at most twice a second."""
        self._progress = {"images": int(images), "total": int(total), "eta_seconds": eta_seconds} | facts
        if time.monotonic() - self._progress_at >= PROGRESS_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes the latest progress; only logs if the database does not answer."""
        if self._progress is None:
            return
        try:
            with transaction(self.bind, durable=False) as conn:
                jobs.progress(conn, self.id, self.token, self._progress)
            self._progress = None
        except Unavailable:
            log.warning("progress_not_written", job=self.id)
        self._progress_at = time.monotonic()

    def metrics(self, images: int, values: dict[str, float]) -> None:
        """Writes one point of the curves."""
        point = {name: float(value) for name, value in values.items()}
        self.write(lambda conn: events.add_metrics(conn, self.id, self.token, int(images), point), durable=False)

    def curve(self, points: list[tuple[int, dict[str, float]]]) -> None:
        """Writes several points (images, values) at once, which is much cheaper."""
        if points:
            self.write(lambda conn: events.add_curve(conn, self.id, self.token, points), durable=False)

    def event(self, kind: str, data: dict[str, Any]) -> None:
        self.write(lambda conn: jobs.add_event(conn, self.id, self.token, kind, data), durable=False)

    def artifact_key(self, name: str) -> str:
        """The key of a blob of this attempt; other attempts never write there."""
        return f"jobs/{self.id}/{self.attempt}/{name}"

    def store_artifacts(self, files: dict[str, bytes]) -> dict[str, dict[str, str]]:
        """Stores files of this attempt; returns the members of the job's result: their keys and SHA-256, by name."""
        for name, data in files.items():
            blobs.put(self.artifact_key(name), data, create_only=False)
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        return {"artifacts": {name: self.artifact_key(name) for name in files}, "sha256": digests}

    def checkpoint(self, ref: dict[str, Any]) -> None:
        """Makes `ref` (keys of blobs written before) the `last_checkpoint` that a later attempt starts from.

        Write the metrics up to this point first: a later attempt repeats only what follows.
        """
        self.write(lambda conn: jobs.add_checkpoint(conn, self.id, self.token, ref))
        self.last_checkpoint = ref

    def write(self, change: Callable[[Connection], T], durable: bool = True) -> T:
        """Runs `change` in a transaction. Raises LeaseLost.

        While the database does not answer, retries for a lease; by then the heartbeat has ended the process.
        """
        pause, deadline = 0.2, time.monotonic() + max(10, settings().lease_seconds)
        while time.monotonic() < deadline:
            try:
                with transaction(self.bind, durable=durable) as conn:
                    return change(conn)
            except Unavailable:
                time.sleep(pause)
                pause = min(2 * pause, 5)
        with transaction(self.bind, durable=durable) as conn:
            return change(conn)


class Heartbeat(threading.Thread):
    """Extends the lease and tells the job when to stop. Ends the process at once when the lease is lost."""

    def __init__(self, job: RunningJob, parent: int | None = None):
        super().__init__(name="heartbeat", daemon=True)
        self.job, self.parent = job, parent
        self.lease = settings().lease_seconds
        self.extended = time.monotonic()
        self._over = threading.Event()

    def stop(self) -> None:
        self._over.set()
        self.join(timeout=5)

    def run(self) -> None:
        while not self._over.wait(min(1.0, self.lease / 6)):
            if self.parent is not None and os.getppid() != self.parent:
                os.kill(os.getpid(), signal.SIGKILL)  # systems without a parent-death signal
            self.beat()

    def beat(self) -> None:
        extend = time.monotonic() - self.extended >= self.lease / 3
        try:
            with transaction(self.job.bind, durable=False) as conn:
                read = jobs.heartbeat if extend else jobs.read_beat
                beat = read(conn, self.job.id, self.job.token)
        except AnamorphError as error:
            log.warning("heartbeat_failed", job=self.job.id, error=error.detail)
            if time.monotonic() - self.extended > self.lease * 0.9:
                self.abandon()
            return
        if beat is None:
            self.abandon()
            return
        if extend:
            self.extended = time.monotonic()
        self.job.canceled, self.job.late, self.job.too_long = beat.cancel, beat.late, beat.too_long

    def abandon(self) -> None:
        """Ends the process: whatever it would still write would be refused."""
        if not self.job.ending:
            log.warning("lease_lost", job=self.job.id, attempt=self.job.attempt)
            os._exit(LEASE_LOST)
