"""Queues by cost, turns of tenants, limits of running jobs: by the order of claims, not by seconds."""

import pytest
from sqlalchemy import select, update

from app.core.jobs import state as jobs
from app.core.store.database import clock, transaction
from app.core.store.tables import jobs as table


@pytest.fixture
def conn(engine):
    with transaction(engine, durable=False) as conn:
        yield conn


def accept(conn, tenant="t", kind="report", **spec):
    return jobs.accept(conn, tenant=tenant, kind=kind, spec=spec)[0]["id"]


def claim(conn, queue):
    claimed = jobs.claim_oldest(conn, queue, "w")
    return claimed and claimed.id


def finish(conn, job_id):
    token = conn.execute(select(table.c.token).where(table.c.id == job_id)).scalar_one()
    jobs.finish(conn, job_id, token, {})


@pytest.mark.parametrize(
    ("queue", "kind", "spec"),
    [
        ("train", "training", {}),
        ("report", "report", {}),
        ("report", "defence", {}),
        ("report", "perturbation", {}),
        ("report", "oracle", {}),
        ("report", "dataset", {"model": "m@1", "operation": "encode"}),
        ("report", "dataset", {"upload": "u", "bytes": 1 << 30}),
        ("light", "dataset", {"upload": "u", "bytes": 1 << 20}),
        ("light", "dataset", {"builtin": "digits"}),
        ("light", "export", {}),
        ("light", "model", {}),
        ("light", "operation", {}),
        ("light", "operation", {"price": 2.0}),
        ("report", "operation", {"price": 200.0}),
    ],
)
def test_the_queue_follows_the_cost(queue, kind, spec):
    assert jobs.queue_of(kind, spec) == queue


def test_an_import_is_claimed_whatever_waits_or_runs_in_the_other_queues(conn):
    reports = sorted(accept(conn) for _ in range(20))
    trainings = sorted(accept(conn, kind="training") for _ in range(3))
    long_call = accept(conn, kind="operation", price=1320.0)
    assert claim(conn, "report") == reports[0] and claim(conn, "train") == trainings[0]
    short = {accept(conn, kind="dataset", upload="u", bytes=1000), accept(conn, kind="operation", price=0.1)}
    assert {claim(conn, "light"), claim(conn, "light")} == short and claim(conn, "light") is None
    assert jobs.queue_positions(conn, ["report"])[long_call] >= 19


def test_a_tenant_with_a_thousand_jobs_does_not_starve_another(conn, configure):
    configure(ANAMORPH_MAX_RUNNING_JOBS_PER_TENANT=1000)
    many = sorted(accept(conn, "many") for _ in range(200))
    few = sorted(accept(conn, "few") for _ in range(3))
    order = []
    for _ in range(8):
        order.append(claim(conn, "report"))
        finish(conn, order[-1])
    assert order == [many[0], few[0], many[1], few[1], many[2], few[2], many[3], many[4]]
    with_slots = sorted(accept(conn, "few") for _ in range(2))
    assert {claim(conn, "report") for _ in range(2)} == {many[5], with_slots[0]}  # one each, while both wait


def test_a_tenant_that_waits_long_has_its_turn_in_spite_of_running_jobs(conn):
    """Others that come and go with nothing running would otherwise be first for ever."""
    running, patient = sorted([accept(conn, "patient"), accept(conn, "patient")])
    assert claim(conn, "report") == running
    new = accept(conn, "new")
    assert jobs.next_due(conn, "report") == new
    long_ago = {"run_after": clock() - 700, "claimed_at": clock() - 700}
    conn.execute(update(table).where(table.c.tenant == "patient").values(**long_ago))
    conn.execute(update(table).where(table.c.id == new).values(claimed_at=clock() - 60))
    assert jobs.next_due(conn, "report") == patient


def test_a_tenant_has_a_maximum_of_running_jobs_in_all_queues(conn, configure):
    configure(ANAMORPH_MAX_RUNNING_JOBS_PER_TENANT=2)
    mine = [accept(conn, kind="training"), *sorted([accept(conn), accept(conn)]), accept(conn, kind="export")]
    others = accept(conn, "other")
    assert claim(conn, "train") == mine[0] and claim(conn, "report") == mine[1]
    assert (claim(conn, "light"), claim(conn, "report"), claim(conn, "report")) == (None, others, None)
    finish(conn, mine[0])
    assert claim(conn, "light") == mine[3]


def test_a_run_has_a_maximum_length(conn, configure):
    configure(ANAMORPH_MAX_JOB_SECONDS=100)
    job_id = accept(conn)
    claimed = jobs.claim(conn, job_id, "w")
    beat = jobs.read_beat(conn, job_id, claimed.token)
    assert (beat.late, beat.too_long) == (False, False)
    conn.execute(update(table).values(claimed_at=clock() - 101))
    beat = jobs.heartbeat(conn, job_id, claimed.token)
    assert (beat.late, beat.too_long) == (True, True)
