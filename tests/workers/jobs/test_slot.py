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

from app.core.jobs import state as jobs
from app.core.store.database import clock, make_engine, reading, transaction
from app.core.store.tables import jobs as table
from workers.jobs import slot as slots
from workers.jobs.slot import ProcessWatch, Slot

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
    )
    engine = make_engine(sqlite_url)
    yield engine
    engine.dispose()


class Watched:
    """A claimed job under a watch of its own thread."""

    def __init__(self, engine, folder, kind):
        self.engine, self.signal = engine, folder / "ready"
        with transaction(engine) as conn:
            job, _ = jobs.accept(conn, tenant="t", kind=kind, spec={"ready": str(self.signal)})
            self.claim = jobs.claim(conn, job["id"], "w")
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()

    def watch(self):
        ProcessWatch(self.claim, self.engine, BODY).until_ended(self.stopping)

    def pid(self):
        return wait_for(lambda: self.signal.exists() and int(self.signal.read_text()))

    def row(self):
        with reading(self.engine) as conn:
            return jobs.get(conn, "t", self.claim.id)

    def end(self):
        self.thread.join(30)
        assert not self.thread.is_alive()
        return self.row()


def wait_for(truth, seconds=30):
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
        "from workers.jobs.slot import ProcessWatch\n"
        f"with transaction() as conn: claim = jobs.claim(conn, {job['id']!r}, 'w')\n"
        f"ProcessWatch(claim, None, {BODY!r}).until_ended(Event())"
    )
    worker = subprocess.Popen([sys.executable, "-c", code])
    pid = wait_for(lambda: (tmp_path / "ready").exists() and int((tmp_path / "ready").read_text()))
    worker.kill()
    worker.wait()
    wait_for(lambda: not psutil.pid_exists(pid), seconds=5)


# ---- slots


@pytest.fixture
def done(engine, monkeypatch):
    """A watch that needs no process; the ids of the jobs done, in order. `gate` holds each job until set."""
    done, gate = [], threading.Event()
    gate.set()

    class Instant:
        def __init__(self, claim, bind, command):
            self.claim = claim

        def until_ended(self, stopping):
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
    wait_for(lambda: seen == [first, second], seconds=5)


def test_a_slot_needs_no_ring_at_all(engine, slot, done, configure):
    configure(ANAMORPH_SWEEP_SECONDS=0.05)
    slot.start()
    time.sleep(0.2)
    job = accept(engine)
    wait_for(lambda: done[0] == [job], seconds=5)


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
