"""The job as its runner sees it: what to do, whether to stop, and fenced ways to say how far it is."""

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import structlog
from sqlalchemy import Connection, Engine

from app.core.errors import AnamorphError, Unavailable
from app.core.jobs import events
from app.core.jobs import state as jobs
from app.core.settings import settings
from app.core.store.database import transaction

log = structlog.get_logger(__name__)

LEASE_LOST = 75  # exit status: somebody else may hold the job now, nothing was written
PROGRESS_SECONDS = 0.5
T = TypeVar("T")


class Stopped(Exception):
    """Raised by a runner that stops because `job.stopping` says so, after saving what it wants to keep."""


@dataclass(frozen=True)
class Result:
    """What a runner made. `also` writes rows (a model, a dataset) in the transaction that ends the job."""

    value: dict[str, Any] = field(default_factory=dict)
    also: Callable[[Connection], None] | None = None


class RunningJob:
    """Between two steps a runner reads `stopping`, and if it is set saves a checkpoint and raises Stopped."""

    def __init__(self, claim: jobs.Claim, bind: Engine | None = None):
        self.id, self.tenant, self.kind, self.spec = claim.id, claim.tenant, claim.kind, claim.spec
        self.attempt, self.token = claim.attempt, claim.token
        self.last_checkpoint = claim.checkpoint
        self.bind = bind
        self.canceled = self.late = self.released = False
        self.ending = False  # the ending is being written: a lost token is then no news
        self._progress: dict[str, Any] | None = None
        self._progress_at = float("-inf")

    @property
    def stopping(self) -> Literal["cancel", "release"] | None:
        """ "cancel": asked by a client, or too late. "release": this worker goes away, another will go on."""
        if self.canceled or self.late:
            return "cancel"
        return "release" if self.released else None

    def stop_if_asked(self) -> None:
        if self.stopping:
            raise Stopped(self.stopping)

    def progress(self, images: int, total: int, eta_seconds: float | None = None) -> None:
        """How far the job is. Cheap to call after every step: written twice a second at most."""
        self._progress = {"images": int(images), "total": int(total), "eta_seconds": eta_seconds}
        if time.monotonic() - self._progress_at >= PROGRESS_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes the latest progress; a database that does not answer just now is no reason to stop."""
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
        """One point of the curves."""
        point = {name: float(value) for name, value in values.items()}
        self.write(lambda conn: events.add_metrics(conn, self.id, self.token, int(images), point), durable=False)

    def curve(self, points: list[tuple[int, dict[str, float]]]) -> None:
        """Several points (images, values) at once, which is much cheaper."""
        if points:
            self.write(lambda conn: events.add_curve(conn, self.id, self.token, points), durable=False)

    def event(self, kind: str, data: dict[str, Any]) -> None:
        self.write(lambda conn: jobs.add_event(conn, self.id, self.token, kind, data), durable=False)

    def artifact_key(self, name: str) -> str:
        """Where this attempt keeps a blob: another attempt never writes there."""
        return f"jobs/{self.id}/{self.attempt}/{name}"

    def checkpoint(self, ref: dict[str, Any]) -> None:
        """Makes `ref` (keys of blobs written before) what a later attempt starts from, as `last_checkpoint`.

        Metrics up to here come first: a later attempt repeats only what follows.
        """
        self.write(lambda conn: jobs.add_checkpoint(conn, self.id, self.token, ref))
        self.last_checkpoint = ref

    def write(self, change: Callable[[Connection], T], durable: bool = True) -> T:
        """Runs `change` in a transaction, again when the database does not answer. LeaseLost passes through."""
        for pause in (0.2, 1, 3, 6):
            try:
                with transaction(self.bind, durable=durable) as conn:
                    return change(conn)
            except Unavailable:
                time.sleep(pause)
        with transaction(self.bind, durable=durable) as conn:
            return change(conn)


class Heartbeat(threading.Thread):
    """Extends the lease and carries the wish to stop to the job. Without a lease the process ends on the spot."""

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
                say = jobs.heartbeat if extend else jobs.look
                beat = say(conn, self.job.id, self.job.token)
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
        self.job.canceled, self.job.late = beat.cancel, beat.late

    def abandon(self) -> None:
        """Nothing this process computes counts any more, and nothing it might still write would be taken."""
        if not self.job.ending:
            log.warning("lease_lost", job=self.job.id, attempt=self.job.attempt)
            os._exit(LEASE_LOST)
