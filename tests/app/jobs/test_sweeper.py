"""The sweeper's rounds, with a broker that answers and one that does not, and who is present."""

import time

import pytest
from sqlalchemy import select, update

from app.core.jobs import state as jobs
from app.core.jobs import sweeper
from app.core.jobs import workers as worker_rows
from app.core.jobs.sweeper import Sweeper, sweep_once
from app.core.store.database import clock, reading, transaction
from app.core.store.tables import jobs as table
from app.core.store.tables import workers


@pytest.fixture
def rung(monkeypatch):
    """What the broker was told; setting `rung.deaf` makes it refuse."""

    class Rung(list):
        deaf = False

        def notify(self, job_id, queue):
            if not self.deaf:
                self.append((job_id, queue))
            return not self.deaf

    rung = Rung()
    monkeypatch.setattr(sweeper, "notify", rung.notify)
    return rung


def accept(engine, kind="training"):
    with transaction(engine) as conn:
        return jobs.accept(conn, tenant="t", kind=kind, spec={})[0]["id"]


def test_a_round_announces_each_new_job_once(engine, rung):
    ids = {accept(engine) for _ in range(3)}
    assert sweep_once(engine) == 3
    assert {job_id for job_id, _ in rung} == ids
    assert sweep_once(engine) == 0


def test_jobs_are_announced_when_the_broker_is_back(engine, rung):
    ids = {accept(engine) for _ in range(3)}
    rung.deaf = True
    sweep_once(engine)
    rung.deaf = False
    sweep_once(engine)
    assert {job_id for job_id, _ in rung} == ids and len(rung) == 3


def test_a_lost_job_is_taken_back_and_announced_in_one_round(engine, rung):
    job_id = accept(engine)
    sweep_once(engine)
    with transaction(engine) as conn:
        jobs.claim(conn, job_id, "w")
        conn.execute(update(table).values(lease_until=clock() - 1))
    sweep_once(engine)
    assert rung == [(job_id, "train")] * 2


def test_a_woken_sweeper_announces_jobs_at_once(engine, rung, configure):
    configure(ANAMORPH_SWEEP_SECONDS=600)
    thread = Sweeper(engine)
    thread.start()
    time.sleep(0.3)
    job_id = accept(engine)
    thread.wake_event.set()
    deadline = time.monotonic() + 60
    while not rung and time.monotonic() < deadline:
        time.sleep(0.01)
    thread.stop()
    assert rung == [(job_id, "train")] and not thread.is_alive()


def test_a_sweeper_survives_errors(engine, rung, configure, monkeypatch):
    configure(ANAMORPH_SWEEP_SECONDS=0.05)
    real, broken = jobs.to_sweep, iter([RuntimeError("bug")])

    def to_sweep(conn):
        if error := next(broken, None):
            raise error
        return real(conn)

    monkeypatch.setattr(jobs, "to_sweep", to_sweep)
    thread = Sweeper(engine)
    thread.start()
    job_id = accept(engine)
    deadline = time.monotonic() + 60
    while not rung and time.monotonic() < deadline:
        time.sleep(0.01)
    thread.stop()
    assert rung == [(job_id, "train")]


def test_workers_are_live_until_they_stop_reporting(engine, configure, tmp_path):
    configure(BLOBS_URL=f"file://{tmp_path}/blobs")
    with transaction(engine) as conn:
        worker_rows.beat(conn, "a", ["train", "light"], "cpu")
        worker_rows.beat(conn, "b", ["infer"], models=["m"])
    with transaction(engine) as conn:
        worker_rows.beat(conn, "b", ["infer"])
        conn.execute(update(workers).where(workers.c.id == "a").values(seen_at=clock() - 20))
        assert [worker["id"] for worker in worker_rows.fresh(conn)] == ["b"]
        assert [worker["queues"] for worker in worker_rows.fresh(conn, 30)] == [["light", "train"], ["infer"]]
        worker_rows.leave(conn, "b")
        assert worker_rows.fresh(conn) == []
        conn.execute(update(workers).values(seen_at=clock() - 7200))
    sweeper.tidy(engine)
    with reading(engine) as conn:
        assert conn.execute(select(workers)).all() == []
