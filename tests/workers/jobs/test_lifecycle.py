"""What a job's process writes at its end, and the one map from exceptions to errors."""

import signal
import subprocess
import sys
import threading
import time

import pytest
from sqlalchemy import select, update

from app.core import errors
from app.core.jobs import events
from app.core.jobs import state as jobs
from app.core.jobs.state import LeaseLost
from app.core.store import blobs
from app.core.store.database import clock, reading, transaction
from app.core.store.tables import jobs as table
from app.core.store.tables import workers
from models import types
from tests.workers.jobs.bodies import KINDS
from workers.jobs import lifecycle
from workers.jobs.job import Heartbeat, RunningJob
from workers.jobs.kinds import RUNNERS


@pytest.fixture
def start(engine, monkeypatch):
    """Makes a claimed job of a test kind."""
    for kind, runner in KINDS.items():
        monkeypatch.setitem(RUNNERS, kind, runner)

    def start(kind, **spec):
        with transaction(engine, durable=False) as conn:
            job, _ = jobs.accept(conn, tenant="t", kind=kind, spec=spec)
            claim = jobs.claim(conn, job["id"], "w")
            return RunningJob(jobs.begin(conn, claim.id, claim.token), engine)

    return start


@pytest.fixture
def row(engine):
    def row(job):
        with reading(engine) as conn:
            return jobs.get(conn, "t", job.id)

    return row


def steal(engine, job):
    """The lease runs out and somebody else takes the job."""
    with transaction(engine, durable=False) as conn:
        conn.execute(update(table).where(table.c.id == job.id).values(lease_until=clock() - 1))
        jobs.sweep(conn)
        return jobs.claim(conn, job.id, "thief")


def test_success_writes_result_progress_curve_and_rows_together(engine, start, row):
    job = start("succeed", seed=3)
    lifecycle.end(job)
    after = row(job)
    assert (after["state"], after["result"]) == ("succeeded", {"spec": {"seed": 3}})
    assert after["progress"] == {"images": 2, "total": 2, "eta_seconds": None}
    with reading(engine) as conn:
        assert events.metrics(conn, job.id) == [{"images": 2, "values": {"loss": 0.5}}]
        assert conn.execute(select(workers.c.id)).scalars().all() == ["made"]


def test_a_fenced_success_leaves_nothing(engine, start, row):
    job = start("vanish")
    job.kind = "succeed"
    steal(engine, job)
    with pytest.raises(LeaseLost):
        lifecycle.end(job)
    assert row(job)["state"] == "running" and row(job)["result"] is None
    with reading(engine) as conn:
        assert conn.execute(select(workers)).all() == []


@pytest.mark.parametrize(
    ("flag", "state", "code"),
    [("canceled", "canceled", None), ("released", "queued", None), ("late", "failed", "deadline-exceeded")],
)
def test_a_stop_is_written_as_what_was_asked(engine, start, row, tmp_path, flag, state, code):
    job = start("obey", ready=str(tmp_path / "ready"))
    if flag == "canceled":
        with transaction(engine, durable=False) as conn:
            jobs.cancel(conn, "t", job.id)
    setattr(job, flag, True)
    lifecycle.end(job)
    after = row(job)
    assert (after["state"], after["checkpoint"], after["failures"]) == (state, {"images": 7}, 0)
    assert (after["error"] or {}).get("code") == code


@pytest.mark.parametrize(
    ("error", "state", "code"),
    [
        ("config", "failed", "invalid-config"),
        ("bug", "failed", "internal"),
        ("memory", "queued", "out-of-memory"),
        ("disk", "queued", "storage-full"),
    ],
)
def test_only_infrastructure_errors_get_another_attempt(engine, start, row, error, state, code):
    job = start("fail", error=error)
    lifecycle.end(job)
    after = row(job)
    assert after["state"] == state
    assert after["failures"] == (state == "queued")
    if state == "failed":
        assert after["error"]["code"] == code
        assert "secret" not in str(after["error"])
    else:
        with reading(engine) as conn:
            assert events.events_after(conn, job.id)[-1]["data"] == {"why": code}


def test_a_stop_nobody_asked_for_is_a_bug_not_a_loop(start, row):
    job = start("stop_unasked")
    lifecycle.end(job)
    assert row(job)["error"]["code"] == "internal"


def test_an_unknown_kind_fails(start, row):
    job = start("unheard-of")
    lifecycle.end(job)
    assert (row(job)["state"], row(job)["error"]["code"]) == ("failed", "internal")


def test_a_wrong_token_runs_nothing(engine, start):
    job = start("succeed")
    assert lifecycle.run(job.id, "0" * 32, bind=engine) == lifecycle.LEASE_LOST


# ---- the running job


def test_progress_is_written_at_most_twice_a_second_and_at_the_end(start, row):
    job = start("succeed")
    for images in range(100):
        job.progress(images, 100)
    assert row(job)["progress"]["images"] == 0
    job.flush()
    assert row(job)["progress"]["images"] == 99


def test_blobs_of_two_attempts_have_two_folders(engine, start):
    job = start("succeed")
    other = RunningJob(steal(engine, job), engine)
    assert job.artifact_key("a.png") == f"jobs/{job.id}/1/a.png"
    assert other.artifact_key("a.png") == f"jobs/{job.id}/2/a.png"


def test_a_checkpoint_is_found_by_the_next_attempt(engine, start):
    job = start("succeed")
    job.checkpoint({"key": "k"})
    assert RunningJob(steal(engine, job), engine).last_checkpoint == {"key": "k"}
    with pytest.raises(LeaseLost):
        job.checkpoint({"key": "zombie"})


def test_a_short_outage_of_the_database_is_waited_out(start, row, monkeypatch):
    job, failures = start("succeed"), iter([True, True, False])
    monkeypatch.setattr(time, "sleep", lambda seconds: None)

    def change(conn):
        if next(failures):
            raise errors.Unavailable("gone")
        jobs.add_event(conn, job.id, job.token, "log", {})

    job.write(change)


def lease_until(engine, job):
    with reading(engine) as conn:
        return jobs.get(conn, "t", job.id)["lease_until"]


def test_the_heart_extends_the_lease_and_carries_the_wish_to_stop(engine, start, configure):
    configure(ANAMORPH_LEASE_SECONDS=0.6)
    job = start("succeed")
    before = lease_until(engine, job)
    heartbeat = Heartbeat(job)
    heartbeat.start()
    deadline = time.monotonic() + 60
    while lease_until(engine, job) < before + 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert lease_until(engine, job) >= before + 1
    with transaction(engine, durable=False) as conn:
        jobs.cancel(conn, "t", job.id)
    while not job.stopping and time.monotonic() < deadline:
        time.sleep(0.01)
    heartbeat.stop()
    assert job.stopping == "cancel" and not heartbeat.is_alive()


@pytest.mark.parametrize("loss", ["stolen", "database gone for a lease"])
def test_without_a_lease_the_process_ends_on_the_spot(engine, start, monkeypatch, loss):
    job, exits = start("succeed"), []
    heartbeat = Heartbeat(job)
    monkeypatch.setattr("os._exit", exits.append)
    if loss == "stolen":
        steal(engine, job)
        heartbeat.beat()
    else:
        monkeypatch.setattr(jobs, "read_beat", lambda *_: (_ for _ in ()).throw(errors.Unavailable("gone")))
        monkeypatch.setattr(jobs, "heartbeat", jobs.read_beat)
        heartbeat.beat()
        assert exits == []
        heartbeat.extended -= heartbeat.lease
        heartbeat.beat()
    assert exits == [lifecycle.LEASE_LOST]


# ---- the map


class OutOfMemoryError(RuntimeError):
    """torch's has this name and base."""


@pytest.mark.parametrize(
    ("exception", "kind"),
    [
        (errors.InvalidImage("x"), errors.InvalidImage),
        (MemoryError(), errors.OutOfMemory),
        (OutOfMemoryError("CUDA"), errors.OutOfMemory),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
            errors.OutOfMemory,
        ),
        (OSError(28, "No space left on device"), errors.StorageFull),
        (OSError(122, "Disk quota exceeded"), errors.StorageFull),
        (ConnectionResetError(), errors.Unavailable),
        (TimeoutError(), errors.Unavailable),
        (FileNotFoundError(2, "no such file"), errors.Internal),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), errors.Internal),
        (ValueError("x"), errors.Internal),
    ],
)
def test_exceptions_become_errors(exception, kind):
    assert type(lifecycle.error_of(exception)) is kind


def test_model_errors_keep_their_code_field_and_remedy():
    error = lifecycle.error_of(types.ConfigError("too many", field="/config/layers", remedy="Use fewer."))
    assert (error.code, error.field, error.remedy, error.status) == (
        "invalid-config",
        "/config/layers",
        "Use fewer.",
        422,
    )
    assert lifecycle.error_of(types.Diverged("nan")).code == "diverged"
    subclasses = [types.ModelError]
    while subclasses:
        kind = subclasses.pop()
        subclasses += kind.__subclasses__()
        assert lifecycle.error_of(kind("x")).code == kind.code, f"app.core.errors lacks the code {kind.code}"


def test_a_run_ignores_ctrl_c_and_stops_its_heart(engine, start):
    job = start("succeed")
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    try:
        assert lifecycle.run(job.id, job.token, bind=engine) == 0
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, handlers[0])
        signal.signal(signal.SIGINT, handlers[1])
    assert "heart" not in {thread.name for thread in threading.enumerate()}


def test_workers_that_only_ring_and_watch_load_no_torch():
    code = "import sys, workers.main, workers.jobs.process; sys.exit(not {'torch', 'models'}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("kind", ["succeed", "fail"])
def test_an_upload_is_deleted_only_after_the_commit_of_the_end(engine, start, configure, tmp_path, monkeypatch, kind):
    """A kill or a lost database between the two would leave a job that can never run again."""
    configure(BLOBS_URL=f"file://{tmp_path}/blobs")
    blobs.put("uploads/1", b"zip")
    job, seen = start(kind, upload="uploads/1", error="config"), []
    change = "finish" if kind == "succeed" else "fail"
    real = getattr(jobs, change)

    def broken(conn, *arguments):
        real(conn, *arguments)
        seen.append(blobs.exists("uploads/1"))
        if len(seen) == 1:
            raise errors.Unavailable("The database does not answer.")

    monkeypatch.setattr(jobs, change, broken)
    lifecycle.end(job)
    assert seen == [True, True] and not blobs.exists("uploads/1")


def test_an_upload_of_a_job_that_goes_back_into_the_queue_is_kept(start, row, configure, tmp_path):
    configure(BLOBS_URL=f"file://{tmp_path}/blobs")
    blobs.put("uploads/1", b"zip")
    released, failed = start("stop_unasked", upload="uploads/1"), start("fail", upload="uploads/1", error="disk")
    for job in (released, failed):
        lifecycle.end_stopped(job) if job is released else lifecycle.end(job)
        assert row(job)["state"] == "queued"
    assert blobs.exists("uploads/1")
