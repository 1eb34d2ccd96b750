"""The life of one job in its process, from claim to end: runs its runner and writes how it ended."""

import signal
from collections.abc import Callable

import structlog
from sqlalchemy import Connection, Engine

from app.core import errors
from app.core.jobs import state as jobs
from app.core.jobs.state import LeaseLost
from app.core.store import blobs
from app.core.store.database import transaction
from workers.errors import error_of
from workers.jobs.job import LEASE_LOST, Heartbeat, Result, RunningJob, Stopped, late_error
from workers.jobs.kinds import runner_of

log = structlog.get_logger(__name__)

RETRYABLE = (
    errors.WorkerLost,
    errors.OutOfMemory,
    errors.StorageFull,
    errors.Unavailable,
    errors.Overloaded,
)


def run(job_id: str, token: str, parent: int | None = None, bind: Engine | None = None) -> int:
    """Runs the job that `token` holds; returns the exit status of the process."""
    with transaction(bind, durable=False) as conn:
        claim = jobs.begin(conn, job_id, token)
    if claim is None:
        return LEASE_LOST
    job = RunningJob(claim, bind)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the supervisor, which then terminates us
    signal.signal(signal.SIGTERM, lambda *_: setattr(job, "released", True))
    heartbeat = Heartbeat(job, parent)
    heartbeat.start()
    try:
        end(job)
    except LeaseLost:
        log.warning("fenced", job=job.id, attempt=job.attempt)
        return LEASE_LOST
    except errors.Unavailable as error:
        log.warning("ending_not_written", job=job.id, attempt=job.attempt, error=error.detail)
        return LEASE_LOST
    finally:
        job.ending = True
        heartbeat.stop()
    return 0


def end(job: RunningJob) -> None:
    """Runs the job and writes how it ended."""
    try:
        result = runner_of(job.kind)(job) or Result()
        job.flush()
        write_ending(job, lambda conn: jobs.finish(conn, job.id, job.token, result.value, result.also))
        forget_upload(job)
    except LeaseLost:
        raise
    except Exception as exception:
        if isinstance(exception, Stopped) and job.stopping:
            end_stopped(job)
        else:
            end_failed(job, exception)


def end_stopped(job: RunningJob) -> None:
    job.flush()
    if job.late:
        late = late_error(job.too_long).problem()
        write_ending(job, lambda conn: jobs.fail(conn, job.id, job.token, late))
    elif job.canceled:
        write_ending(job, lambda conn: jobs.confirm_cancel(conn, job.id, job.token))
    else:
        write_ending(job, lambda conn: jobs.release(conn, job.id, job.token))
        return
    forget_upload(job)


def end_failed(job: RunningJob, exception: Exception) -> None:
    """Writes a failure: errors of the infrastructure allow another attempt, others would come again."""
    error = error_of(exception)
    log.error("job_failed", job=job.id, attempt=job.attempt, code=error.code, exc_info=exception)
    change = jobs.fail_attempt if isinstance(error, RETRYABLE) else jobs.fail
    write_ending(job, lambda conn: change(conn, job.id, job.token, error.problem()))
    if change is jobs.fail:
        forget_upload(job)


def forget_upload(job: RunningJob) -> None:
    """Deletes what was uploaded for the job. Only after the commit of its end: until then it may run once more."""
    if upload := job.spec.get("upload"):
        try:
            blobs.delete_prefix(upload)
        except (OSError, errors.AnamorphError) as error:
            log.warning("upload_not_deleted", job=job.id, error=str(error))  # the cleanup deletes it a day later


def write_ending(job: RunningJob, change: Callable[[Connection], None]) -> None:
    job.ending = True
    try:
        job.write(change)
    finally:
        job.ending = False
