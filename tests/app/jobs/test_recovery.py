"""Lost jobs: which losses are failures, which are nobody's, and what the errors say."""

import time

import pytest
from sqlalchemy import select, update

from app.core import machine
from app.core.jobs import events, sweeper
from app.core.jobs import state as jobs
from app.core.jobs.statements import FALSE_STARTS
from app.core.jobs.sweeper import sweep_once
from app.core.machine import Clocks
from app.core.store.database import clock, now, transaction
from app.core.store.tables import jobs as table

PROBLEM = {"code": "worker-lost", "cause": "killed", "detail": "gone"}


@pytest.fixture
def conn(engine):
    with transaction(engine, durable=False) as conn:
        yield conn


def accept(conn):
    return jobs.accept(conn, tenant="t", kind="training", spec={})[0]["id"]


def expire(conn):
    conn.execute(update(table).where(table.c.state == "running").values(lease_until=clock() - 1))


def row(conn, job_id):
    return jobs.get(conn, "t", job_id)


def loss(conn, claim):
    expire(conn)
    jobs.sweep(conn)


def failure(conn, claim):
    jobs.fail_attempt(conn, claim.id, claim.token, PROBLEM, pause_seconds=0)


@pytest.mark.parametrize("end", [loss, failure])
def test_attempts_that_never_began_are_no_failures_but_limited(conn, end):
    job_id = accept(conn)
    for attempt in range(1, FALSE_STARTS + 1):
        assert (row(conn, job_id)["failures"], row(conn, job_id)["state"]) == (0, "queued")
        claim = jobs.claim(conn, job_id, "w")
        assert claim.attempt == attempt
        end(conn, claim)
    job = row(conn, job_id)
    assert (job["state"], job["failures"], job["false_starts"]) == ("failed", 0, FALSE_STARTS)
    cause, code = {loss: ("never-began", "attempts-exhausted"), failure: ("killed", "worker-lost")}[end]
    assert (job["error"]["cause"], job["error"]["code"]) == (cause, code)


@pytest.mark.parametrize("end", [loss, failure])
def test_a_first_heartbeat_makes_the_end_a_failure(conn, end):
    job_id = accept(conn)
    end(conn, jobs.claim(conn, job_id, "w"))
    claim = jobs.claim(conn, job_id, "w")
    assert jobs.begin(conn, job_id, claim.token) == claim
    assert row(conn, job_id)["false_starts"] == 0
    end(conn, claim)
    job = row(conn, job_id)
    assert (job["state"], job["failures"], job["false_starts"]) == ("queued", 1, 0)
    assert not jobs.read_beat(conn, job_id, jobs.claim(conn, job_id, "w").token).begun


def test_the_first_heartbeat_renews_the_lease_and_needs_the_token(conn):
    claim = jobs.claim(conn, accept(conn), "w")
    expire(conn)
    assert jobs.begin(conn, claim.id, claim.token)
    assert jobs.read_beat(conn, claim.id, claim.token).lease_left > 50
    assert jobs.begin(conn, claim.id, "x") is None


def test_why_an_attempt_ended_is_in_its_event(conn):
    job_id = accept(conn)
    failure(conn, jobs.claim(conn, job_id, "w"))
    assert events.events_after(conn, job_id)[-1]["data"] == {"why": "killed"}


# ---- leases that ran out for everybody


@pytest.fixture
def round_of(engine, monkeypatch):
    """A round of a sweeper that looked `passed` seconds ago, by the clocks of the database and of this machine."""
    monkeypatch.setattr(sweeper, "notify", lambda job_id, queue: True)

    def look(database=0.0, machine=0.0, awake=None, failed=False):
        clocks = Clocks(30)
        with transaction(engine) as conn:
            clocks.look(now(conn))
        then, real, monotonic = clocks.last
        clocks.last = then - database, real - machine, monotonic - (machine if awake is None else awake)
        clocks.failed = failed
        return sweep_once(engine, clocks)

    return look


@pytest.mark.parametrize(
    ("why", "passed"),
    [
        ("machine-slept", {"database": 3600, "machine": 3600, "awake": 1}),
        ("clock-jumped", {"database": 3600, "machine": 1}),
        ("clock-jumped", {"database": -3600, "machine": 1}),
        ("database-outage", {"database": 120, "machine": 120, "failed": True}),
        ("process-stalled", {"database": 120, "machine": 120}),
    ],
)
def test_leases_that_ran_out_for_all_at_once_are_nobodys_failure(engine, round_of, why, passed):
    with transaction(engine) as conn:
        claims = [jobs.claim(conn, accept(conn), "w") for _ in range(3)]
        expire(conn)
    round_of(**passed)
    with transaction(engine) as conn:
        for claim in claims:
            beat = jobs.read_beat(conn, claim.id, claim.token)
            assert beat and 50 < beat.lease_left <= 60
            assert events.events_after(conn, claim.id)[-1]["kind"] == "lease_renewed"
            assert events.events_after(conn, claim.id)[-1]["data"] == {"why": why}
        expire(conn)  # and nobody beats
    assert round_of(database=1, machine=1) >= 3
    with transaction(engine) as conn:
        assert set(conn.execute(select(table.c.state)).scalars()) == {"queued"}


def test_a_sweeper_that_starts_takes_back_what_it_finds(engine, round_of):
    with transaction(engine) as conn:
        accept(conn)
        claim = jobs.claim_oldest(conn, "train", "w")
        expire(conn)
    sweep_once(engine, Clocks(30))
    with transaction(engine) as conn:
        assert row(conn, claim.id)["state"] == "queued"


def test_jobs_do_not_wait_for_a_time_that_a_clock_set_back_has_left(engine, round_of):
    with transaction(engine) as conn:
        job_id = accept(conn)
        conn.execute(update(table).values(run_after=clock() + 3600, published_at=clock() + 3600))
    round_of(database=-3600, machine=1)
    with transaction(engine) as conn:
        assert jobs.claim(conn, job_id, "w")


def test_a_sweeper_keeps_its_clocks_and_knows_of_failed_looks(engine, configure, monkeypatch):
    configure(ANAMORPH_SWEEP_SECONDS=0.02)
    seen = []

    def sweep(bind, clocks):
        seen.append((id(clocks), clocks.failed))
        clocks.failed = False
        if len(seen) == 2:
            raise sweeper.AnamorphError("gone")

    monkeypatch.setattr(sweeper, "sweep_once", sweep)
    thread = sweeper.Sweeper(engine)
    thread.start()
    deadline = time.monotonic() + 60
    while len(seen) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    thread.stop()
    assert len({clocks for clocks, _ in seen}) == 1
    assert [failed for _, failed in seen[:4]] == [False, False, True, False]


# ---- the machine


def test_cpu_time_grows_with_work_and_not_with_sleep():
    import os

    before = machine.cpu_seconds(os.getpid())
    deadline = time.process_time() + 0.2
    while time.process_time() < deadline:
        pass
    assert machine.cpu_seconds(os.getpid()) - before >= 0.1
    assert machine.cpu_seconds(os.getsid(0), session=True) >= 0
    assert machine.cpu_seconds(2**22 + 1) is None


def test_kills_for_lack_of_memory_are_counted_in_the_own_control_group(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "PROC", tmp_path / "proc")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "cgroup")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/vmstat").write_text("pgfault 7\noom_kill 5\n")
    assert machine.oom_kills() == 5
    (tmp_path / "proc/self/cgroup").write_text("0::/box\n")
    (tmp_path / "cgroup/box").mkdir(parents=True)
    (tmp_path / "cgroup/box/memory.events").write_text("oom 1\noom_kill 2\noom_group_kill 0\n")
    assert machine.oom_kills() == 2
    (tmp_path / "proc/self/cgroup").write_text("5:cpu:/\n4:memory:/old\n")
    (tmp_path / "cgroup/memory/old").mkdir(parents=True)
    (tmp_path / "cgroup/memory/old/memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    assert machine.oom_kills() == 3
