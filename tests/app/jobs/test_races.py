"""Many at once: every job is claimed by exactly one, and sweepers may double."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from sqlalchemy import exc, insert, select, text, update

from app.core.errors import Unavailable
from app.core.jobs import state as jobs
from app.core.store.database import clock, new_id, reading, retried, transaction
from app.core.store.tables import jobs as table

THREADS = 16


def fill(engine, count, **columns):
    row = {"tenant": "t", "kind": "training", "queue": "train", "spec": {}, "spec_sha256": "", "state": "queued"}
    row |= {"max_failures": 3, "run_after": 0.0, "created_at": 0.0, "begun_at": 1.0} | columns
    with transaction(engine, durable=False) as conn:
        conn.execute(insert(table), [row | {"id": new_id()} for _ in range(count)])


def together(act):
    """Runs `act(index)` in all threads at the same moment."""
    gate = threading.Barrier(THREADS)

    def go(index):
        gate.wait()
        return act(index)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(go, range(THREADS)))


def write(engine, change):
    """Runs `change` in a transaction; on a busy machine SQLite may refuse one of sixteen writers, as it does others."""
    for _ in range(20):
        with suppress(Unavailable), transaction(engine, durable=False) as conn:
            return change(conn)
    raise AssertionError("the database did not answer")


@pytest.mark.parametrize("count", [200])
def test_sixteen_threads_claim_each_job_exactly_once(engine, count):
    fill(engine, count)

    def work(index):
        mine = []
        while claim := write(engine, lambda conn: jobs.claim_oldest(conn, "train", f"w{index}")):
            mine.append(claim.id)
            write(engine, lambda conn, claim=claim: jobs.finish(conn, claim.id, claim.token, {"by": index}))
        return mine

    claims = [job_id for mine in together(work) for job_id in mine]
    assert len(claims) == len(set(claims)) == count
    with reading(engine) as conn:
        rows = conn.execute(select(table.c.state, table.c.attempt)).all()
    assert Counter(rows) == {("succeeded", 1): count}


def test_all_threads_after_the_same_job_and_one_gets_it(engine):
    fill(engine, 20)
    with reading(engine) as conn:
        ids = conn.execute(select(table.c.id)).scalars().all()

    def work(index):
        won = 0
        for job_id in ids:
            won += write(engine, lambda conn, job_id=job_id: jobs.claim(conn, job_id, f"w{index}")) is not None
        return won

    assert sum(together(work)) == 20


def test_sixteen_sweepers_do_the_work_of_one(engine):
    lost = {"state": "running", "token": "x", "lease_until": 1.0, "attempt": 1}
    fill(engine, 40, **lost)
    fill(engine, 5, **lost, failures=2)

    def sweep(_):
        swept = write(engine, jobs.sweep)
        return swept, [job_id for job_id, _ in write(engine, lambda conn: jobs.take_unannounced(conn, limit=1000))]

    answers = together(sweep)
    rung = [job_id for _, ids in answers for job_id in ids]
    assert sum(swept for swept, _ in answers) == 45
    assert len(rung) == len(set(rung)) == 40
    with reading(engine) as conn:
        rows = conn.execute(select(table.c.state, table.c.failures)).all()
    assert Counter(rows) == {("queued", 1): 40, ("failed", 3): 5}


def test_a_cancel_is_never_forgotten_by_a_concurrent_release(engine, configure):
    """Whichever comes first, the job that was canceled does not run again."""
    configure(ANAMORPH_MAX_RUNNING_JOBS_PER_TENANT=100)
    fill(engine, 60)
    with transaction(engine, durable=False) as conn:
        claims = [jobs.claim_oldest(conn, "train", "w") for _ in range(60)]

    def act(index):
        for claim in claims[index // 2 :: THREADS // 2]:
            if index % 2:
                write(engine, lambda conn, claim=claim: jobs.cancel(conn, "t", claim.id))
            else:
                write(engine, lambda conn, claim=claim: jobs.release(conn, claim.id, claim.token))

    together(act)
    with transaction(engine, durable=False) as conn:
        conn.execute(update(table).where(table.c.state == "running").values(lease_until=clock() - 1))
        jobs.sweep(conn)
        assert set(conn.execute(select(table.c.state)).scalars()) == {"canceled"}


def test_a_sweep_does_not_wait_for_rows_that_another_holds(engine):
    """Two sweepers that each wait for a row of the other are a deadlock on PostgreSQL."""
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    fill(engine, 6, state="running", token="x", lease_until=1.0, attempt=1)
    fill(engine, 2, deadline=1.0)
    fill(engine, 2)
    with reading(engine) as conn:
        held = conn.execute(select(table.c.id).order_by(table.c.id)).scalars().all()[::2]
    with transaction(engine) as other, transaction(engine) as conn:
        other.execute(select(table.c.id).where(table.c.id.in_(held)).with_for_update()).all()
        conn.execute(text("SET LOCAL lock_timeout = '5s'"))
        assert jobs.sweep(conn) == 4
        assert len(jobs.take_unannounced(conn)) == 4
        jobs.mark_unannounced(conn, held)
    with transaction(engine) as conn:
        assert (jobs.sweep(conn), len(jobs.take_unannounced(conn))) == (4, 4)


@pytest.mark.parametrize("states", [("40P01",), ("40001",), ("40P01", "40001")])
def test_a_transaction_that_was_rolled_back_runs_once_more(engine, states):
    class Orig(Exception):
        def __init__(self, state):
            self.sqlstate = state

    left = list(states)

    def change(conn):
        if left:
            raise exc.OperationalError("UPDATE", {}, Orig(left.pop(0)))
        return "done"

    if len(states) == 1:
        assert retried(change, engine) == "done"
    else:
        with pytest.raises(Unavailable):
            retried(change, engine)
