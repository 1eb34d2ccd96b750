"""The state machine of durable jobs. A job's state changes only here and, for sweepers, in `recovery`.

    queued  -> running              claim (attempt + 1, fresh token, lease)
    running -> succeeded | failed   finish, fail: by the holder of the token
    running -> queued               lease expired or attempt failed (failures + 1; false_starts + 1 if it never began),
                                    released on shutdown (unchanged)
    running -> failed               failures reached max_failures
    queued  -> canceled, failed     cancel; deadline passed before the start
    running -> canceled             cancel asked for, then confirmed by the holder or by the lease's end
    failed | canceled -> queued     resume, of kinds that keep checkpoints

Every change is one conditional UPDATE and its event. If it matches no row, another process was first.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, insert, select, update

from app.core.errors import Conflict, InvalidRequest, QuotaExceeded
from app.core.jobs import events
from app.core.jobs.events import LeaseLost
from app.core.jobs.idempotency import claim_key, remember
from app.core.jobs.queries import STATES as STATES
from app.core.jobs.queries import TERMINAL as TERMINAL
from app.core.jobs.queries import WORD, devices_needed, due, get, next_due
from app.core.jobs.queries import counts as counts
from app.core.jobs.queries import list_jobs as list_jobs
from app.core.jobs.recovery import mark_unannounced as mark_unannounced
from app.core.jobs.recovery import renew_leases as renew_leases
from app.core.jobs.recovery import sweep as sweep
from app.core.jobs.recovery import take_unannounced as take_unannounced
from app.core.jobs.recovery import to_sweep as to_sweep
from app.core.jobs.statements import (
    BEGUN,
    LAST,
    ONE_MORE,
    change,
    count_ended,
    end,
    held_by,
    late,
    lock,
    queued,
    too_long,
)
from app.core.settings import settings
from app.core.store.database import clock, encode_json, new_id
from app.core.store.tables import jobs

QUEUES = ("train", "report", "light")
"""train: trainings; report: minutes; light: seconds. Each has its own slot in a worker."""
REPORT_KINDS = ("report", "defence", "perturbation", "oracle")

LIGHT_SECONDS = 15
"""Predicted seconds above which an asynchronous call is no longer light."""
LIGHT_BYTES = 256 << 20
"""Size of an archive above which its import is no longer light."""
RESUMABLE = ("training", "report", "perturbation")
"""Kinds that keep checkpoints."""
CLAIMS = 4242424243
"""Key of the lock that claims take on PostgreSQL."""
PRINTABLE = re.compile(r"[\x21-\x7e]{1,255}")


@dataclass(frozen=True)
class Claim:
    """The right to run a job: every write needs `token`; `attempt` names the folder of its blobs."""

    id: str
    tenant: str
    kind: str
    queue: str
    spec: dict[str, Any]
    attempt: int
    token: str
    checkpoint: dict[str, Any] | None


@dataclass(frozen=True)
class Beat:
    """The answer to a heartbeat. Times are by the clock of the database."""

    cancel: bool
    late: bool  # the deadline has passed, or the run is longer than max_job_seconds
    too_long: bool = False  # the latter
    begun: bool = field(default=True, compare=False)
    lease_until: float = field(default=0.0, compare=False)
    now: float = field(default=0.0, compare=False)

    @property
    def lease_left(self) -> float:
        """Seconds until the lease runs out."""
        return self.lease_until - self.now


# ---- from outside: accept, cancel, resume


def accept(
    conn: Connection,
    *,
    tenant: str,
    kind: str,
    spec: dict[str, Any],
    key: str | None = None,
    fingerprint: str | None = None,
    deadline_seconds: float | None = None,
    max_failures: int | None = None,
    job_id: str | None = None,
    within_quota: bool = True,
) -> tuple[dict[str, Any], bool]:
    """Writes a queued job, and the idempotency key that led to it, in the caller's transaction.

    Returns (job, replayed). Answer the client only after the commit; then wake the sweeper, which notifies a worker.
    """
    _check_words(tenant, kind, key)
    text = encode_json(spec)
    digest = hashlib.sha256(text.encode()).hexdigest()
    job_id = job_id or new_id()
    if key is not None:
        replay = claim_key(conn, tenant, key, fingerprint or hashlib.sha256(f"{kind} {text}".encode()).hexdigest())
        if replay is not None:
            return get(conn, tenant, replay.job_id or ""), True
        remember(conn, tenant, key, job_id=job_id)
    if within_quota:
        _check_quota(conn, tenant)
    row = {
        "id": job_id,
        "tenant": tenant,
        "kind": kind,
        "queue": queue_of(kind, spec),
        "spec": spec,
        "spec_sha256": digest,
        "state": "queued",
        "max_failures": max_failures or settings().max_failures,
        "run_after": clock(),
        "created_at": clock(),
        "deadline": None if deadline_seconds is None else clock() + deadline_seconds,
    }
    job = dict(conn.execute(insert(jobs).values(**row).returning(jobs)).mappings().one())
    return job | {"last_event": events.append(conn, job_id, "queued", {})}, False


def queue_of(kind: str, spec: dict[str, Any]) -> str:
    """The queue of a job, by its cost as known when it is accepted.

    `report` has reports, defences, perturbations, derived datasets, attacks on oracles, large imports and long calls.
    """
    if kind == "training":
        return "train"
    derived = kind == "dataset" and ("model" in spec or "operation" in spec)
    large = spec.get("bytes", 0) > LIGHT_BYTES
    long = kind == "operation" and spec.get("price", 0) > LIGHT_SECONDS
    return "report" if kind in REPORT_KINDS or derived or large or long else "light"


def _check_words(tenant: str, kind: str, key: str | None) -> None:
    for name, value, allowed in (("tenant", tenant, WORD), ("kind", kind, WORD), ("Idempotency-Key", key, PRINTABLE)):
        if value is not None and not allowed.fullmatch(value):
            what = "1 to 255 visible ASCII characters" if allowed is PRINTABLE else "1 to 64 of A-Z a-z 0-9 . _ @ -"
            raise InvalidRequest(f"{name} must be {what}.", field=name)


def _check_quota(conn: Connection, tenant: str) -> None:
    limit = settings().max_jobs_per_tenant
    if active_count(conn, tenant) >= limit:
        raise QuotaExceeded(
            f"{limit} jobs are queued or running, the maximum of a tenant.",
            remedy="Wait until some have ended, or cancel some.",
            retry_after=30,
        )


def active_count(conn: Connection, tenant: str) -> int:
    """Jobs of the tenant that are queued or running."""
    active = jobs.c.state.in_(("queued", "running"))
    return conn.execute(select(func.count()).where(jobs.c.tenant == tenant, active)).scalar_one()


def queue_positions(conn: Connection, queues: Iterable[str]) -> dict[str, int]:
    """The place of each waiting job of these queues: 1 for the job that starts next, tenants taking turns."""
    turn = func.row_number().over(partition_by=(jobs.c.queue, jobs.c.tenant), order_by=jobs.c.id)
    waiting = (
        select(jobs.c.id, jobs.c.queue, turn.label("turn"))
        .where(jobs.c.state == "queued", jobs.c.queue.in_(list(queues)))
        .subquery()
    )
    place = func.row_number().over(partition_by=waiting.c.queue, order_by=(waiting.c.turn, waiting.c.id))
    return dict(tuple(row) for row in conn.execute(select(waiting.c.id, place)))


def cancel(conn: Connection, tenant: str, job_id: str) -> dict[str, Any]:
    """Cancels a queued job at once and asks the worker of a running one to stop. A job may be canceled twice."""
    job = get(conn, tenant, job_id, lock=True)
    if job["state"] in ("succeeded", "failed"):
        raise Conflict(f"The job has already {job['state']}, so it cannot be canceled.", state=job["state"])
    mine = jobs.c.id == job_id
    cancel_running = (
        update(jobs).where(mine, jobs.c.state == "running", ~jobs.c.cancel_requested).values(cancel_requested=True)
    )
    change(conn, end(mine & (jobs.c.state == "queued"), "canceled"), "canceled")
    change(conn, cancel_running, "cancel_requested")
    return get(conn, tenant, job_id)


def resume(conn: Connection, tenant: str, job_id: str) -> dict[str, Any]:
    """Queues a failed or canceled job again; it continues from its last checkpoint. Raises Conflict."""
    job = get(conn, tenant, job_id, lock=True)
    if job["kind"] not in RESUMABLE:
        raise Conflict(f"A job of kind {job['kind']!r} cannot be resumed.", remedy="Submit it again.")
    _check_quota(conn, tenant)
    ended = and_(jobs.c.id == job_id, jobs.c.state.in_(("failed", "canceled")))
    again = queued(ended).values(failures=0, error=None, finished_at=None, deadline=None, run_after=clock())
    if not change(conn, again, "queued", {"why": "resumed"}):
        raise Conflict(f"The job is {job['state']}; only a failed or canceled job can be resumed.", state=job["state"])
    count_ended(conn, job["kind"], job["state"], -1)
    return get(conn, tenant, job_id)


# ---- the holder's side: claim, beat, write, end


def claim(
    conn: Connection, job_id: str, worker: str, lease_seconds: float | None = None, devices: Sequence[str] = ()
) -> Claim | None:
    """Takes the job, to run it on `devices`, if it is queued and due. None if another worker was first."""
    statement = (
        update(jobs)
        .where(jobs.c.id == job_id, due())
        .values(
            state="running",
            token=events.new_token(),
            worker=worker[:128],
            attempt=jobs.c.attempt + 1,
            lease_until=clock() + (lease_seconds or settings().lease_seconds),
            started_at=func.coalesce(jobs.c.started_at, clock()),
            claimed_at=clock(),
            begun_at=None,
        )
        .returning(*(jobs.c[name] for name in Claim.__dataclass_fields__))
    )
    row = conn.execute(statement).mappings().one_or_none()
    if row is None:
        return None
    where = {"devices": list(devices)} if devices else {}
    events.append(conn, job_id, "running", {"worker": worker[:128]} | where, row["token"])
    return Claim(**row)


def claim_oldest(
    conn: Connection,
    queue: str,
    worker: str,
    lease_seconds: float | None = None,
    devices: Sequence[str] = (),
    most_devices: int | None = None,
) -> Claim | None:
    """Takes the next job of a queue. Tenants take turns: fewest running jobs first, then longest wait.

    Trainings of a worker with `most_devices` devices run on the first of `devices`, those that are free; None if these
    are too few for the next one.
    """
    if conn.dialect.name == "postgresql":  # one at a time, so that no tenant gets more running jobs than allowed
        conn.execute(select(func.pg_advisory_xact_lock(CLAIMS)))
    while (job_id := next_due(conn, queue, most_devices)) is not None:
        needed = devices_needed(conn, job_id) if most_devices else 0
        if needed > len(devices):
            return None
        if (claimed := claim(conn, job_id, worker, lease_seconds, devices[:needed])) is not None:
            return claimed
    return None


def begin(conn: Connection, job_id: str, token: str) -> Claim | None:
    """The first heartbeat of an attempt, by its process; from now on its end counts. None if the lease is lost."""
    values = {"begun_at": clock(), "false_starts": 0, "lease_until": clock() + settings().lease_seconds}
    statement = update(jobs).where(held_by(job_id, token)).values(**values)
    row = conn.execute(statement.returning(*(jobs.c[name] for name in Claim.__dataclass_fields__))).mappings().first()
    return None if row is None else Claim(**row)


def heartbeat(conn: Connection, job_id: str, token: str, lease_seconds: float | None = None) -> Beat | None:
    """Extends the lease. None: the lease is lost, stop computing."""
    extended = clock() + (lease_seconds or settings().lease_seconds)
    statement = update(jobs).where(held_by(job_id, token)).values(lease_until=extended)
    return _beat(conn.execute(statement.returning(*_beat_columns())).one_or_none())


def read_beat(conn: Connection, job_id: str, token: str) -> Beat | None:
    """The answer to a heartbeat, without extending the lease."""
    return _beat(conn.execute(select(*_beat_columns()).where(held_by(job_id, token))).one_or_none())


def progress(conn: Connection, job_id: str, token: str, value: dict[str, Any]) -> None:
    """Stores {"images", "total", "eta_seconds"}. Raises LeaseLost, like every write below."""
    if not conn.execute(update(jobs).where(held_by(job_id, token)).values(progress=value)).rowcount:
        raise LeaseLost(job_id)


def add_checkpoint(conn: Connection, job_id: str, token: str, ref: dict[str, Any]) -> None:
    """Stores references to the blobs of a checkpoint, and sets the number of failures to 0."""
    if not conn.execute(update(jobs).where(held_by(job_id, token)).values(checkpoint=ref, failures=0)).rowcount:
        raise LeaseLost(job_id)
    events.append(conn, job_id, "checkpoint", ref, token)


def add_event(conn: Connection, job_id: str, token: str, kind: str, data: dict[str, Any]) -> int:
    return events.append(conn, job_id, kind, data, token)


def finish(
    conn: Connection, job_id: str, token: str, result: dict[str, Any], also: Callable[[Connection], None] | None = None
) -> None:
    """The job succeeded. `also` writes more rows, such as that of a model, in the same transaction."""
    if not change(conn, end(held_by(job_id, token), "succeeded").values(result=result), "succeeded", by=token):
        raise LeaseLost(job_id)
    if also is not None:
        also(conn)


def amend_result(
    conn: Connection, job_id: str, more: dict[str, Any], event: tuple[str, dict[str, Any]] | None = None
) -> None:
    """Adds to the result of a job that succeeded, with an event (kind, data) that says so."""
    mine = (jobs.c.id == job_id) & (jobs.c.state == "succeeded")
    result = conn.execute(select(jobs.c.result).where(mine).with_for_update()).scalar_one_or_none()
    if result is None:
        return
    conn.execute(update(jobs).where(mine).values(result=result | more))
    if event:
        events.append(conn, job_id, *event)


def fail(conn: Connection, job_id: str, token: str, problem: dict[str, Any]) -> None:
    """The job failed because of its request, and is not tried again."""
    ended = end(held_by(job_id, token), "failed").values(error=problem)
    if not change(conn, ended, "failed", {"code": problem.get("code")}, by=token):
        raise LeaseLost(job_id)


def fail_attempt(conn: Connection, job_id: str, token: str, problem: dict[str, Any], pause_seconds: float = 1) -> None:
    """The attempt failed because of the infrastructure: the job is tried again, up to max_failures times.

    An attempt that never began is no failure; FALSE_STARTS of them in a row are too many.
    """
    lock(conn, job_id)
    mine, why = held_by(job_id, token), problem.get("cause") or problem.get("code")
    stopped = mine & jobs.c.cancel_requested
    pause = clock() + pause_seconds * (jobs.c.failures + jobs.c.false_starts + 1)
    again = queued(mine & ~LAST).values(run_after=pause, **ONE_MORE)
    ended = end(mine & LAST, "failed").values(error=problem, **ONE_MORE)
    if not (
        change(conn, end(stopped, "canceled"), "canceled", by=token)
        or change(conn, again, "queued", {"why": why}, by=token)
        or change(conn, ended, "failed", {"code": problem.get("code")}, by=token)
    ):
        raise LeaseLost(job_id)


def release(conn: Connection, job_id: str, token: str, why: str = "released") -> None:
    """Puts the job back into the queue, as on shutdown; this counts as no failure."""
    lock(conn, job_id)
    mine = held_by(job_id, token)
    if not (
        change(conn, end(mine & jobs.c.cancel_requested, "canceled"), "canceled", by=token)
        or change(conn, queued(mine).values(run_after=clock()), "queued", {"why": why}, by=token)
    ):
        raise LeaseLost(job_id)


def confirm_cancel(conn: Connection, job_id: str, token: str) -> None:
    """The worker has stopped the job after a cancel."""
    if not change(conn, end(held_by(job_id, token) & jobs.c.cancel_requested, "canceled"), "canceled", by=token):
        raise LeaseLost(job_id)


def _beat(row) -> Beat | None:
    if row is None:
        return None
    cancel, late, too_long, begun, *times = row
    return Beat(bool(cancel), bool(late or too_long), bool(too_long), bool(begun), *times)


def _beat_columns() -> tuple[ColumnElement, ...]:
    return jobs.c.cancel_requested, late(), too_long(), BEGUN, jobs.c.lease_until, clock()
