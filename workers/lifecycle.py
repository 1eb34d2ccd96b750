"""A process of one job from claim to end: runs its runner, writes one ending. Holds the one map exception -> error."""

import errno
import signal
import sys
from collections.abc import Callable

import structlog
from sqlalchemy import Connection, Engine, exc

from app.core import errors, jobs
from app.core.blobs import FULL
from app.core.database import reading
from app.core.errors import AnamorphError
from app.core.jobs import LeaseLost
from workers.runners import runner_of
from workers.running import LEASE_LOST, Heart, Result, RunningJob, Stopped

log = structlog.get_logger(__name__)

INFRASTRUCTURE = (
    errors.WorkerLost,
    errors.OutOfMemory,
    errors.StorageFull,
    errors.Unavailable,
    errors.Overloaded,
)
UNREACHABLE = (OSError, exc.OperationalError, exc.InterfaceError, exc.TimeoutError)


def error_of(exception: BaseException) -> AnamorphError:
    """What a client is told of `exception`."""
    model_error = getattr(sys.modules.get("models.types"), "ModelError", ())  # who raises one has imported it
    if isinstance(exception, AnamorphError):
        return exception
    if isinstance(exception, model_error):
        kind = errors.CODES.get(exception.code, errors.InvalidRequest)
        return kind(exception.detail, field=exception.field, remedy=exception.remedy)
    if _out_of_memory(exception):
        return errors.OutOfMemory(
            "The worker ran out of memory.", remedy="Use smaller images, a smaller batch or a smaller network."
        )
    if isinstance(exception, OSError) and exception.errno in FULL:
        return errors.StorageFull("There is no space left on the worker.", remedy="Free disk space, then try again.")
    if isinstance(exception, UNREACHABLE) and getattr(exception, "errno", None) != errno.ENOENT:
        return errors.Unavailable("The worker could not reach its storage or database.", retry_after=5)
    return errors.Internal("Something went wrong inside the worker; its log has the details.")


def _out_of_memory(exception: BaseException) -> bool:
    if isinstance(exception, MemoryError) or type(exception).__name__ == "OutOfMemoryError":
        return True
    text = str(exception).lower()
    return isinstance(exception, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def run(job_id: str, token: str, parent: int | None = None, bind: Engine | None = None) -> int:
    """Does the job that `token` was given for; returns the process's exit status."""
    with reading(bind) as conn:
        claim = jobs.held(conn, job_id, token)
    if claim is None:
        return LEASE_LOST
    job = RunningJob(claim, bind)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the supervisor, which then asks us
    signal.signal(signal.SIGTERM, lambda *_: setattr(job, "released", True))
    heart = Heart(job, parent)
    heart.start()
    try:
        end(job)
    except LeaseLost:
        log.warning("fenced", job=job.id, attempt=job.attempt)
        return LEASE_LOST
    finally:
        job.ending = True
        heart.stop()
    return 0


def end(job: RunningJob) -> None:
    """Runs the job and writes how it ended."""
    try:
        result = runner_of(job.kind)(job) or Result()
        job.flush()
        write_ending(job, lambda conn: jobs.finish(conn, job.id, job.token, result.value, result.also))
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
        late = errors.DeadlineExceeded("The job did not end before its deadline.").problem()
        write_ending(job, lambda conn: jobs.fail(conn, job.id, job.token, late))
    elif job.canceled:
        write_ending(job, lambda conn: jobs.confirm_cancel(conn, job.id, job.token))
    else:
        write_ending(job, lambda conn: jobs.release(conn, job.id, job.token))


def end_failed(job: RunningJob, exception: Exception) -> None:
    """Infrastructure errors are worth another attempt; a deterministic one would come again with the same input."""
    error = error_of(exception)
    log.error("job_failed", job=job.id, attempt=job.attempt, code=error.code, exc_info=exception)
    change = jobs.fail_attempt if isinstance(error, INFRASTRUCTURE) else jobs.fail
    write_ending(job, lambda conn: change(conn, job.id, job.token, error.problem()))


def write_ending(job: RunningJob, change: Callable[[Connection], None]) -> None:
    job.ending = True
    try:
        job.write(change)
    finally:
        job.ending = False
