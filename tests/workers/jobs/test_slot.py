"""Slots and watches: real processes that crash, hang, freeze and are asked to go."""

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from sqlalchemy import update

from app.core import machine
from app.core.jobs import events, sweeper
from app.core.jobs import state as jobs
from app.core.store.database import clock, make_engine, reading, transaction
from app.core.store.tables import jobs as table
from workers.jobs import slot as slots
from workers.jobs import watch
from workers.jobs.job import LEASE_LOST
from workers.jobs.slot import Slot
from workers.jobs.watch import ProcessWatch

BODY = (sys.executable, "-m", "tests.workers.jobs.bodies")


@pytest.fixture
def engine(sqlite_url, configure):
    """SQLite, which the jobs' processes find by the same settings."""
    configure(
        DATABASE_URL=sqlite_url,
        ANAMORPH_LEASE_SECONDS=60,
        ANAMORPH_CANCEL_GRACE_SECONDS=1,
        ANAMORPH_RELEASE_GRACE_SECONDS=1,
        ANAMORPH_SWEEP_SECONDS=60,
        ANAMORPH_WARM_START=False,
    )
    engine = make_engine(sqlite_url)
    yield engine
    engine.dispose()


class Watched:
    """A claimed job under a watch of its own thread."""

    def __init__(self, engine, folder, kind, command=BODY):
        self.engine, self.signal, self.command = engine, folder / "ready", command
        with transaction(engine) as conn:
            job, _ = jobs.accept(conn, tenant="t", kind=kind, spec={"ready": str(self.signal)})
            self.claim = jobs.claim(conn, job["id"], "w")
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()

    def watch(self):
        ProcessWatch(self.claim, self.engine, self.command).until_ended(self.stopping)

    def pid(self):
        return wait_for(lambda: self.signal.exists() and int(self.signal.read_text()))

    def row(self):
        with reading(self.engine) as conn:
            return jobs.get(conn, "t", self.claim.id)

    def end(self):
        self.thread.join(120)
        assert not self.thread.is_alive()
        return self.row()


def wait_for(truth, seconds=120):
    deadline = time.monotonic() + seconds
    while not (answer := truth()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return answer


@pytest.mark.parametrize(("kind", "how"), [("vanish", "status 0"), ("crash", "signal 11")])
def test_a_process_that_ends_without_a_word_is_a_failed_attempt(engine, tmp_path, kind, how):
    row = Watched(engine, tmp_path, kind).end()
    assert (row["state"], row["failures"]) == ("queued", 1)
    with transaction(engine) as conn:
        conn.execute(update(table).values(failures=2, run_after=clock()))
        claim = jobs.claim(conn, row["id"], "w")
    ProcessWatch(claim, engine, BODY).until_ended(threading.Event())
    with reading(engine) as conn:
        row = jobs.get(conn, "t", row["id"])
    assert (row["state"], row["error"]["code"]) == ("failed", "worker-lost")
    assert how in row["error"]["detail"]


def test_a_stopping_worker_has_its_job_save_and_go_back(engine, tmp_path):
    watched = Watched(engine, tmp_path, "obey")
    watched.pid()
    watched.stopping.set()
    row = watched.end()
    assert (row["state"], row["checkpoint"], row["failures"]) == ("queued", {"images": 7}, 0)


def test_a_job_that_does_not_go_is_killed_and_released_without_a_failure(engine, tmp_path):
    watched = Watched(engine, tmp_path, "ignore")
    pid = watched.pid()
    watched.stopping.set()
    row = watched.end()
    assert (row["state"], row["failures"]) == ("queued", 0) and not psutil.pid_exists(pid)


@pytest.mark.parametrize("kind", ["obey", "ignore"])
def test_a_canceled_job_ends_canceled_whether_it_listens_or_not(engine, tmp_path, kind):
    watched = Watched(engine, tmp_path, kind)
    pid = watched.pid()
    with transaction(engine) as conn:
        jobs.cancel(conn, "t", watched.claim.id)
    row = watched.end()
    assert row["state"] == "canceled" and not psutil.pid_exists(pid)
    assert row["checkpoint"] == ({"images": 7} if kind == "obey" else None)


def test_a_job_beyond_its_deadline_is_killed_and_says_so(engine, tmp_path):
    watched = Watched(engine, tmp_path, "ignore")
    watched.pid()
    with transaction(engine) as conn:
        conn.execute(update(table).values(deadline=clock() - 1))
    row = watched.end()
    assert (row["state"], row["error"]["code"]) == ("failed", "deadline-exceeded")


def test_a_frozen_job_that_lost_its_lease_wakes_up_and_writes_nothing(engine, tmp_path):
    watched = Watched(engine, tmp_path, "obey")
    pid = watched.pid()
    os.kill(pid, signal.SIGSTOP)
    with transaction(engine) as conn:
        conn.execute(update(table).values(lease_until=clock() - 1))
        jobs.sweep(conn)
        other = jobs.claim(conn, watched.claim.id, "other")
    before = watched.row()
    os.kill(pid, signal.SIGCONT)
    assert watched.end() == before
    assert before["token"] == other.token


def test_a_job_process_dies_with_its_worker(engine, tmp_path):
    """kill -9 of the worker alone: no orphan goes on computing."""
    with transaction(engine) as conn:
        job, _ = jobs.accept(conn, tenant="t", kind="ignore", spec={"ready": str(tmp_path / "ready")})
    code = (
        "from threading import Event; from app.core.jobs import state as jobs\n"
        "from app.core.store.database import transaction\n"
        "from workers.jobs.watch import ProcessWatch\n"
        f"with transaction() as conn: claim = jobs.claim(conn, {job['id']!r}, 'w')\n"
        f"ProcessWatch(claim, None, {BODY!r}).until_ended(Event())"
    )
    worker = subprocess.Popen([sys.executable, "-c", code])
    pid = wait_for(lambda: (tmp_path / "ready").exists() and int((tmp_path / "ready").read_text()))
    worker.kill()
    worker.wait()
    wait_for(lambda: not psutil.pid_exists(pid))


# ---- leases


def after(seconds, command=BODY):
    """A command that sleeps before it runs `command`, as on a machine too busy to start a process."""
    return "sh", "-c", f'sleep {seconds}; exec "$@"', "sh", *command


@pytest.fixture
def sweeping(engine, monkeypatch):
    """A sweeper beside the watch; `sweeping()` is the number of changes it made."""
    monkeypatch.setattr(sweeper, "notify", lambda job_id, queue: True)
    changes, over = [], threading.Event()

    def sweep():
        while not over.wait(0.1):
            with transaction(engine) as conn:
                changes.append(jobs.sweep(conn))

    thread = threading.Thread(target=sweep)
    thread.start()
    yield lambda: sum(changes)
    over.set()
    thread.join()


def test_the_watch_holds_the_lease_until_the_first_heartbeat(engine, tmp_path, configure, sweeping):
    configure(ANAMORPH_LEASE_SECONDS=1)
    row = Watched(engine, tmp_path, "vanish", after(3)).end()
    assert sweeping() == 0
    assert (row["attempt"], row["failures"], row["false_starts"]) == (1, 1, 0)  # it began, and then vanished


def test_a_process_that_never_begins_is_ended_and_no_failure(engine, tmp_path, configure, sweeping, monkeypatch):
    configure(ANAMORPH_LEASE_SECONDS=1)
    monkeypatch.setattr(watch, "HELD_LEASES", 2)
    row = Watched(engine, tmp_path, "succeed", after(600)).end()
    assert sweeping() == 0
    assert (row["state"], row["attempt"], row["failures"], row["false_starts"]) == ("queued", 1, 0, 1)
    with reading(engine) as conn:
        assert events.events_after(conn, row["id"])[-1]["data"] == {"why": "starved"}


@pytest.mark.parametrize("kind", ["starved", "hung"])
def test_a_process_without_heartbeats_keeps_its_lease_while_it_computes(
    engine, tmp_path, configure, sweeping, monkeypatch, kind
):
    configure(ANAMORPH_LEASE_SECONDS=1)
    monkeypatch.setattr(watch, "HELD_LEASES", 3)
    row = Watched(engine, tmp_path, kind).end()
    with reading(engine) as conn:
        data = events.events_after(conn, row["id"])[-1]["data"]
    assert (row["state"], row["failures"]) == ("queued", 1)
    assert (data["why"], sweeping()) == {"starved": ("starved", 0), "hung": ("worker-lost", 1)}[kind]


@pytest.mark.parametrize(("oom_kills", "why"), [([3, 3], "killed"), ([3, 4], "out-of-memory")])
def test_a_killed_process_and_one_out_of_memory_are_told_apart(engine, tmp_path, monkeypatch, oom_kills, why):
    monkeypatch.setattr(machine, "oom_kills", iter(oom_kills).__next__)
    watched = Watched(engine, tmp_path, "ignore")
    pid = watched.pid()
    with transaction(engine) as conn:
        conn.execute(update(table).values(failures=2))
    os.kill(pid, signal.SIGKILL)
    row = watched.end()
    assert (row["state"], row["error"]["cause"]) == ("failed", why)
    assert "SIGKILL" in row["error"]["detail"] or why == "out-of-memory"


def test_a_run_beyond_its_limit_ends_with_the_limit_in_its_error(engine, tmp_path):
    watched = Watched(engine, tmp_path, "ignore")
    watched.pid()
    with transaction(engine) as conn:
        conn.execute(update(table).values(claimed_at=clock() - 8 * 86_400))
    row = watched.end()
    assert (row["state"], row["error"]["cause"]) == ("failed", "too-long")
    assert "604800 s" in row["error"]["detail"]


def test_a_process_that_stopped_for_want_of_the_database_is_no_failure(engine, tmp_path):
    row = Watched(engine, tmp_path, "x", ("sh", "-c", f"exit {LEASE_LOST}")).end()
    assert (row["state"], row["failures"], row["false_starts"]) == ("queued", 0, 0)


def test_a_process_whose_job_was_taken_is_killed_at_once_and_told_once(engine, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(watch.log, "warning", lambda event, **_: told.append(event), raising=False)
    watched = Watched(engine, tmp_path, "x", ("sh", "-c", "exec sleep 600"))
    with transaction(engine) as conn:
        conn.execute(update(table).values(lease_until=clock() - 1))
        jobs.sweep(conn)
    watched.end()
    assert told.count("job_killed") == 1


# ---- slots


@pytest.fixture
def done(engine, monkeypatch):
    """A watch that needs no process; the ids of the jobs done, in order. `gate` holds each job until set."""
    done, gate = [], threading.Event()
    gate.set()

    class Instant:
        def __init__(self, claim, bind, command, devices, spares):
            self.claim = claim

        def until_ended(self, stopping, meanwhile):
            done.append(self.claim.id)
            gate.wait(10)
            with transaction(engine) as conn:
                jobs.finish(conn, self.claim.id, self.claim.token, {})

    monkeypatch.setattr(slots, "ProcessWatch", Instant)
    done_list = done
    return done_list, gate


def accept(engine, kind="training"):
    with transaction(engine) as conn:
        return jobs.accept(conn, tenant="t", kind=kind, spec={})[0]["id"]


@pytest.fixture
def slot(engine):
    slot = Slot("train", "w", engine)
    yield slot
    slot.stop()
    slot.join(10)
    assert not slot.is_alive()


def test_one_ring_is_enough_for_all_that_waits(engine, slot, done):
    ids = [accept(engine) for _ in range(5)]
    light = accept(engine, "dataset")
    slot.start()
    slot.wake()
    wait_for(lambda: done[0] == ids)
    with reading(engine) as conn:
        assert jobs.get(conn, "t", light)["state"] == "queued"


def test_a_ring_while_busy_is_not_lost(engine, slot, done):
    """The looks without a ring are a minute apart here: only the ring can bring the second job."""
    seen, gate = done
    slot.start()
    time.sleep(0.3)
    gate.clear()
    first = accept(engine)
    slot.wake()
    wait_for(lambda: seen == [first])
    second = accept(engine)
    slot.wake()
    gate.set()
    wait_for(lambda: seen == [first, second], seconds=50)


def test_a_slot_needs_no_ring_at_all(engine, slot, done, configure):
    configure(ANAMORPH_SWEEP_SECONDS=0.05)
    slot.start()
    time.sleep(0.2)
    job = accept(engine)
    wait_for(lambda: done[0] == [job])


def test_a_stopping_slot_claims_nothing_more(engine, slot, done):
    seen, gate = done
    gate.clear()
    first, second = accept(engine), accept(engine)
    slot.start()
    wait_for(lambda: seen == [first])
    slot.stop()
    gate.set()
    slot.join(10)
    with reading(engine) as conn:
        assert jobs.get(conn, "t", second)["state"] == "queued"


def test_a_slot_survives_errors(engine, slot, done, monkeypatch):
    broken = iter([RuntimeError("bug"), None])
    real = Slot._next

    def next_job(self):
        if error := next(broken, None):
            raise error
        return real(self)

    monkeypatch.setattr(Slot, "_next", next_job)
    job = accept(engine)
    slot.start()
    time.sleep(0.2)
    slot.wake()
    wait_for(lambda: done[0] == [job])
