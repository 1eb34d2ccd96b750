"""One key, one job: repeated, raced, mistaken and forgotten."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select, update

from app.core.errors import IdempotencyMismatch, InvalidRequest
from app.core.jobs import state as jobs
from app.core.jobs.idempotency import claim_key, forget_old, remember
from app.core.store.database import clock, reading, transaction
from app.core.store.tables import idempotency
from app.core.store.tables import jobs as table


def accept(engine, key="k", tenant="t", spec=None, **options):
    with transaction(engine, durable=False) as conn:
        return jobs.accept(conn, tenant=tenant, kind="training", spec=spec or {"seed": 1}, key=key, **options)


def test_the_same_key_gives_the_same_job(engine):
    job, replayed = accept(engine)
    again, replayed_again = accept(engine)
    assert (job["id"], replayed, replayed_again) == (again["id"], False, True)


def test_the_same_key_with_another_request_is_refused(engine):
    accept(engine)
    with pytest.raises(IdempotencyMismatch):
        accept(engine, spec={"seed": 2})
    with pytest.raises(IdempotencyMismatch):
        accept(engine, fingerprint="POST /v1/trainings 123")


def test_another_tenants_key_is_another_key(engine):
    mine, theirs = accept(engine)[0]["id"], accept(engine, tenant="other", spec={"seed": 2})[0]["id"]
    assert mine != theirs
    assert accept(engine)[0]["id"] == mine


def test_fifty_clients_racing_with_one_key_make_one_job(engine):
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: accept(engine), range(50)))
    assert len({job["id"] for job, _ in answers}) == 1
    assert sorted(replayed for _, replayed in answers) == [False] + [True] * 49
    with reading(engine) as conn:
        assert len(conn.execute(select(table.c.id)).all()) == 1


def test_a_request_that_fails_leaves_its_key_free(engine):
    with pytest.raises(RuntimeError), transaction(engine, durable=False) as conn:
        jobs.accept(conn, tenant="t", kind="training", spec={}, key="k")
        raise RuntimeError
    assert accept(engine, spec={"seed": 9})[1] is False


def test_idempotency_keys_are_deleted_after_a_day(engine):
    job, _ = accept(engine)
    accept(engine, key="other")
    with transaction(engine, durable=False) as conn:
        conn.execute(update(idempotency).values(created_at=clock() - 25 * 3600))
    again, replayed = accept(engine, spec={"seed": 2})
    assert again["id"] != job["id"] and not replayed
    with transaction(engine, durable=False) as conn:
        assert forget_old(conn) == 1
        assert forget_old(conn) == 0


@pytest.mark.parametrize("bad", ["", "\0", "a b", "é", "x" * 256])
def test_malformed_keys_are_refused(engine, bad):
    with pytest.raises(InvalidRequest):
        accept(engine, key=bad)


def test_other_requests_replay_what_they_answered(engine):
    with transaction(engine) as conn:
        assert claim_key(conn, "t", "put", "f") is None
        remember(conn, "t", "put", status=201, body={"name": "m"})
    with transaction(engine) as conn:
        replay = claim_key(conn, "t", "put", "f")
    assert (replay.status, replay.body) == (201, {"name": "m"})
