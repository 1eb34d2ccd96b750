"""The state machine: every change by the right one, once, and refused to everyone else. On SQLite and PostgreSQL."""

import pytest
from sqlalchemy import event, select, update

from app.core.errors import Conflict, InvalidRequest, NotFound, QuotaExceeded
from app.core.jobs import cleanup, events
from app.core.jobs import state as jobs
from app.core.jobs.state import LeaseLost
from app.core.store.database import clock, now, reading, transaction
from app.core.store.tables import ended_jobs, workers
from app.core.store.tables import jobs as table

PROBLEM = {"code": "worker-lost", "detail": "gone"}


@pytest.fixture
def conn(engine):
    with transaction(engine, durable=False) as conn:
        yield conn


def accepted(conn, tenant="t", kind="training", **options):
    return jobs.accept(conn, tenant=tenant, kind=kind, spec={"seed": 1}, **options)[0]


def claimed(conn, **options):
    return begun(conn, accepted(conn, **options)["id"])


def begun(conn, job_id, worker="w"):
    """A claimed job whose process has sent its first heartbeat."""
    claim = jobs.claim(conn, job_id, worker)
    return claim and jobs.begin(conn, claim.id, claim.token)


def state(conn, job_id):
    return conn.execute(select(table.c.state).where(table.c.id == job_id)).scalar_one()


def expire(conn, job_id):
    conn.execute(update(table).where(table.c.id == job_id).values(lease_until=clock() - 1))


def kinds(conn, job_id):
    return [event["kind"] for event in events.events_after(conn, job_id)]


ENDED = {
    "succeeded": lambda conn, c: jobs.finish(conn, c.id, c.token, {"ok": 1}),
    "failed": lambda conn, c: jobs.fail(conn, c.id, c.token, PROBLEM),
    "canceled": lambda conn, c: (jobs.cancel(conn, "t", c.id), jobs.confirm_cancel(conn, c.id, c.token)),
}


def test_a_job_goes_from_accepted_to_succeeded(conn):
    job = accepted(conn)
    assert (job["state"], job["attempt"], job["queue"], job["spec"]) == ("queued", 0, "train", {"seed": 1})
    claim = jobs.claim(conn, job["id"], "w")
    assert (claim.attempt, claim.kind, claim.spec) == (1, "training", {"seed": 1})
    jobs.progress(conn, claim.id, claim.token, {"images": 5, "total": 10})
    jobs.finish(conn, claim.id, claim.token, {"model": "m"})
    job = jobs.get(conn, "t", job["id"])
    assert (job["state"], job["result"], job["progress"]["images"], job["token"]) == (
        "succeeded",
        {"model": "m"},
        5,
        None,
    )
    assert job["created_at"] <= job["started_at"] <= job["finished_at"]
    assert kinds(conn, job["id"]) == ["queued", "running", "succeeded"]


def test_only_one_claims_a_job(conn):
    job = accepted(conn)
    assert jobs.claim(conn, job["id"], "a") is not None
    assert jobs.claim(conn, job["id"], "b") is None


def test_kinds_have_their_queues(conn):
    assert accepted(conn, kind="dataset")["queue"] == "light"
    assert jobs.claim_oldest(conn, "train", "w") is None
    assert jobs.claim_oldest(conn, "light", "w").kind == "dataset"


def lease_lost(claim):
    raise LeaseLost(claim.id)


WRITES = {
    "begin": lambda conn, c: jobs.begin(conn, c.id, c.token) or lease_lost(c),
    "progress": lambda conn, c: jobs.progress(conn, c.id, c.token, {"images": 9}),
    "metrics": lambda conn, c: events.add_metrics(conn, c.id, c.token, 1, {"loss": 1.0}),
    "curve": lambda conn, c: events.add_curve(conn, c.id, c.token, [(1, {"loss": 1.0})]),
    "event": lambda conn, c: jobs.add_event(conn, c.id, c.token, "log", {}),
    "checkpoint": lambda conn, c: jobs.add_checkpoint(conn, c.id, c.token, {"images": 1}),
    "finish": lambda conn, c: jobs.finish(conn, c.id, c.token, {"zombie": True}),
    "fail": lambda conn, c: jobs.fail(conn, c.id, c.token, PROBLEM),
    "fail_attempt": lambda conn, c: jobs.fail_attempt(conn, c.id, c.token, PROBLEM),
    "release": lambda conn, c: jobs.release(conn, c.id, c.token),
    "confirm_cancel": lambda conn, c: jobs.confirm_cancel(conn, c.id, c.token),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_a_worker_without_lease_changes_nothing(engine, write):
    """The first holder froze, its lease ran out and another took the job: whatever the first writes is refused."""
    with transaction(engine, durable=False) as conn:
        zombie = claimed(conn)
        expire(conn, zombie.id)
        assert jobs.sweep(conn) == 1
        holder = jobs.claim(conn, zombie.id, "other")
        jobs.cancel(conn, "t", zombie.id)
        before = jobs.get(conn, "t", zombie.id)
    with pytest.raises(LeaseLost), transaction(engine, durable=False) as conn:
        write(conn, zombie)
    with reading(engine) as conn:
        assert jobs.get(conn, "t", zombie.id) == before
        assert jobs.read_beat(conn, zombie.id, zombie.token) is None
        assert jobs.read_beat(conn, holder.id, holder.token)


def test_rows_written_with_a_finish_are_in_its_transaction(engine):
    row = {"id": "x", "host": "h", "pid": 1, "queues": [], "models": [], "started_at": 1.0, "seen_at": 1.0}
    with transaction(engine, durable=False) as conn:
        one, two = claimed(conn), claimed(conn)
        jobs.fail(conn, two.id, two.token, PROBLEM)
    for claim, stored in ((two, 0), (one, 1)):
        try:
            with transaction(engine, durable=False) as conn:
                jobs.finish(
                    conn, claim.id, claim.token, {}, also=lambda conn: conn.execute(workers.insert().values(**row))
                )
        except LeaseLost:
            pass
        with reading(engine) as conn:
            assert len(conn.execute(select(workers)).all()) == stored


def test_a_failing_write_of_a_finish_leaves_the_job_running(engine):
    with transaction(engine, durable=False) as conn:
        claim = claimed(conn)
    with pytest.raises(ZeroDivisionError), transaction(engine, durable=False) as conn:
        jobs.finish(conn, claim.id, claim.token, {}, also=lambda conn: 1 / 0)
    with reading(engine) as conn:
        assert state(conn, claim.id) == "running"


# ---- leases


def test_a_heartbeat_extends_the_lease_by_the_databases_clock(conn):
    claim = claimed(conn)
    expire(conn, claim.id)
    assert jobs.heartbeat(conn, claim.id, claim.token, 40) == jobs.Beat(cancel=False, late=False)
    left = conn.execute(select(table.c.lease_until)).scalar_one() - now(conn)
    assert 35 < left <= 40
    assert jobs.sweep(conn) == 0


def test_an_expired_lease_is_one_failure_and_the_job_waits_again(conn):
    claim = claimed(conn)
    expire(conn, claim.id)
    assert jobs.to_sweep(conn)
    assert jobs.sweep(conn) == 1
    assert jobs.sweep(conn) == 0
    job = jobs.get(conn, "t", claim.id)
    assert (job["state"], job["failures"], job["attempt"], job["published_at"]) == ("queued", 1, 1, None)
    assert jobs.claim(conn, claim.id, "w").attempt == 2
    again = jobs.get(conn, "t", claim.id)
    assert again["started_at"] == job["started_at"] <= job["claimed_at"] < again["claimed_at"]


def test_failures_are_limited_and_attempts_are_not(conn):
    job_id = accepted(conn)["id"]
    for attempt in (1, 2, 3):
        assert begun(conn, job_id).attempt == attempt
        expire(conn, job_id)
        jobs.sweep(conn)
    job = jobs.get(conn, "t", job_id)
    assert (job["state"], job["failures"], job["error"]["code"]) == ("failed", 3, "attempts-exhausted")
    assert jobs.claim(conn, job_id, "w") is None


def test_a_checkpoint_resets_the_failures(conn):
    job_id = accepted(conn)["id"]
    for attempt in range(1, 9):
        claim = jobs.claim(conn, job_id, "w")
        assert claim.checkpoint == ({"images": attempt - 1} if attempt > 1 else None)
        jobs.add_checkpoint(conn, job_id, claim.token, {"images": attempt})
        expire(conn, job_id)
        jobs.sweep(conn)
    assert state(conn, job_id) == "queued"


def test_infrastructure_errors_are_retried_after_a_pause_up_to_the_limit(conn):
    job_id = accepted(conn)["id"]
    for _ in range(2):
        claim = begun(conn, job_id)
        jobs.fail_attempt(conn, job_id, claim.token, PROBLEM, pause_seconds=100)
        assert state(conn, job_id) == "queued" and jobs.claim(conn, job_id, "w") is None
        conn.execute(update(table).values(run_after=clock()))
    claim = begun(conn, job_id)
    jobs.fail_attempt(conn, job_id, claim.token, PROBLEM)
    job = jobs.get(conn, "t", job_id)
    assert (job["state"], job["error"], job["failures"]) == ("failed", PROBLEM, 3)


def test_a_deterministic_error_ends_at_once(conn):
    claim = claimed(conn)
    jobs.fail(conn, claim.id, claim.token, {"code": "invalid-config"})
    job = jobs.get(conn, "t", claim.id)
    assert (job["state"], job["failures"], job["error"]["code"]) == ("failed", 0, "invalid-config")


def test_a_released_job_waits_again_without_a_failure(conn):
    claim = claimed(conn)
    jobs.add_checkpoint(conn, claim.id, claim.token, {"images": 7})
    jobs.release(conn, claim.id, claim.token)
    again = jobs.claim(conn, claim.id, "w")
    assert (again.attempt, again.checkpoint, jobs.get(conn, "t", claim.id)["failures"]) == (2, {"images": 7}, 0)


# ---- cancel, deadline, resume


def test_cancel_of_a_queued_job_is_immediate(conn):
    job = accepted(conn)
    assert jobs.cancel(conn, "t", job["id"])["state"] == "canceled"
    assert jobs.claim(conn, job["id"], "w") is None


def test_cancel_of_a_running_job_waits_for_the_holder(conn):
    claim = claimed(conn)
    assert jobs.cancel(conn, "t", claim.id)["state"] == "running"
    assert jobs.cancel(conn, "t", claim.id)["state"] == "running"
    assert jobs.read_beat(conn, claim.id, claim.token).cancel
    assert jobs.heartbeat(conn, claim.id, claim.token).cancel
    jobs.confirm_cancel(conn, claim.id, claim.token)
    assert jobs.cancel(conn, "t", claim.id)["state"] == "canceled"
    assert kinds(conn, claim.id) == ["queued", "running", "cancel_requested", "canceled"]


@pytest.mark.parametrize("loss", ["expiry", "failure", "release"])
def test_a_canceled_job_never_runs_again(conn, loss):
    claim = claimed(conn)
    jobs.cancel(conn, "t", claim.id)
    if loss == "expiry":
        expire(conn, claim.id)
        jobs.sweep(conn)
    elif loss == "failure":
        jobs.fail_attempt(conn, claim.id, claim.token, PROBLEM)
    else:
        jobs.release(conn, claim.id, claim.token)
    assert state(conn, claim.id) == "canceled"


@pytest.mark.parametrize("ending", ["succeeded", "failed"])
def test_cancel_of_an_ended_job_is_a_conflict(conn, ending):
    claim = claimed(conn)
    ENDED[ending](conn, claim)
    with pytest.raises(Conflict) as caught:
        jobs.cancel(conn, "t", claim.id)
    assert caught.value.problem()["state"] == ending


def test_a_worker_cannot_confirm_a_cancel_that_was_not_requested(conn):
    claim = claimed(conn)
    with pytest.raises(LeaseLost):
        jobs.confirm_cancel(conn, claim.id, claim.token)


def test_a_deadline_ends_a_queued_job_and_is_reported_to_a_running_one(conn):
    waiting, running = accepted(conn, deadline_seconds=100), claimed(conn, deadline_seconds=100)
    jobs.take_unannounced(conn)
    assert not jobs.to_sweep(conn)
    assert not jobs.read_beat(conn, running.id, running.token).late
    conn.execute(update(table).values(deadline=clock() - 1))
    assert jobs.claim(conn, waiting["id"], "w") is None
    assert jobs.to_sweep(conn) and jobs.sweep(conn) == 1
    assert jobs.get(conn, "t", waiting["id"])["error"]["code"] == "deadline-exceeded"
    assert jobs.heartbeat(conn, running.id, running.token).late


@pytest.mark.parametrize("ending", ["failed", "canceled"])
def test_an_ended_training_resumes_from_its_checkpoint(conn, ending):
    claim = claimed(conn)
    jobs.add_checkpoint(conn, claim.id, claim.token, {"images": 3})
    ENDED[ending](conn, claim)
    job = jobs.resume(conn, "t", claim.id)
    assert (job["state"], job["error"], job["failures"], job["finished_at"]) == ("queued", None, 0, None)
    again = jobs.claim(conn, claim.id, "w")
    assert (again.attempt, again.checkpoint) == (2, {"images": 3})
    assert not jobs.read_beat(conn, again.id, again.token).cancel


def test_a_resumed_training_is_new_to_the_queue(conn):
    """Its old deadline and rings do not count."""
    job_id = accepted(conn, deadline_seconds=100)["id"]
    for _ in range(6):
        jobs.take_unannounced(conn)
        conn.execute(update(table).values(published_at=clock() - 1000))
    conn.execute(update(table).values(deadline=clock() - 1))
    jobs.sweep(conn)
    job = jobs.resume(conn, "t", job_id)
    assert (job["deadline"], job["rings"], job["published_at"]) == (None, 0, None)
    assert jobs.claim(conn, job_id, "w") is not None


def test_a_training_does_not_resume_beyond_the_quota(conn, configure):
    claim = claimed(conn)
    jobs.fail(conn, claim.id, claim.token, PROBLEM)
    configure(ANAMORPH_MAX_JOBS_PER_TENANT=1)
    accepted(conn)
    with pytest.raises(QuotaExceeded):
        jobs.resume(conn, "t", claim.id)


def test_only_ended_trainings_resume(conn):
    done, running, imported = claimed(conn), claimed(conn), claimed(conn, kind="dataset")
    jobs.finish(conn, done.id, done.token, {})
    jobs.fail(conn, imported.id, imported.token, PROBLEM)
    for claim in (done, running, imported):
        with pytest.raises(Conflict):
            jobs.resume(conn, "t", claim.id)


@pytest.mark.parametrize("ending", ENDED)
def test_an_ended_job_cannot_be_changed(conn, ending):
    claim = claimed(conn)
    ENDED[ending](conn, claim)
    before = jobs.get(conn, "t", claim.id)
    for write in WRITES.values():
        with pytest.raises(LeaseLost):
            write(conn, claim)
    assert jobs.claim(conn, claim.id, "w") is None
    assert jobs.sweep(conn) == 0 and jobs.take_unannounced(conn) == []
    assert jobs.get(conn, "t", claim.id) == before


# ---- order, rings, tenants


def test_tenants_take_turns(conn):
    for tenant in ("a", "a", "a", "b", "c", "c"):
        accepted(conn, tenant=tenant)
    order = []
    while claim := jobs.claim_oldest(conn, "train", "w"):
        order.append(claim.tenant)
        jobs.finish(conn, claim.id, claim.token, {})
    assert order == ["a", "b", "c", "a", "c", "a"]


def test_the_tenant_with_fewer_running_jobs_goes_first(conn):
    for tenant in ("a", "a", "a", "b"):
        accepted(conn, tenant=tenant)
    assert [jobs.claim_oldest(conn, "train", "w").tenant for _ in range(4)] == ["a", "b", "a", "a"]
    accepted(conn, tenant="a"), accepted(conn, tenant="b")
    last = accepted(conn, tenant="b")["id"]
    jobs.claim(conn, last, "w")  # b was served last, but a has three running
    assert jobs.claim_oldest(conn, "train", "w").tenant == "b"


def test_queue_positions_are_the_order_of_starting(conn):
    made = [accepted(conn, tenant=tenant)["id"] for tenant in ("a", "a", "a", "b", "c", "c")]
    other_queue = accepted(conn, kind="dataset")["id"]
    places = jobs.queue_positions(conn, ["train", "light"])
    assert places.pop(other_queue) == 1
    positions = {place: job_id for job_id, place in places.items()}
    assert sorted(positions) == [1, 2, 3, 4, 5, 6] and set(places) == set(made)
    order = []
    while claim := jobs.claim_oldest(conn, "train", "w"):
        jobs.finish(conn, claim.id, claim.token, {})
        order.append(claim.id)
    assert order == [positions[place] for place in range(1, 7)]
    assert not jobs.queue_positions(conn, ["train"])


def test_each_queued_job_is_announced_once_and_again_after_a_while(conn):
    job, other = accepted(conn), accepted(conn, kind="dataset")
    assert jobs.to_sweep(conn)
    assert sorted(jobs.take_unannounced(conn)) == sorted([(job["id"], "train"), (other["id"], "light")])
    assert jobs.take_unannounced(conn) == [] and not jobs.to_sweep(conn)
    for age, rung in ((29, 0), (31, 2), (59, 0), (61, 2), (119, 0), (121, 2)):
        conn.execute(update(table).values(published_at=clock() - age))
        assert len(jobs.take_unannounced(conn)) == rung, age
    conn.execute(update(table).values(rings=50, published_at=clock() - 599))
    assert jobs.take_unannounced(conn) == []


def test_a_refused_announcement_is_repeated(conn):
    job = accepted(conn)
    jobs.take_unannounced(conn)
    jobs.mark_unannounced(conn, [job["id"]])
    assert jobs.take_unannounced(conn) == [(job["id"], "train")]


def test_a_job_of_another_tenant_is_not_found(conn):
    claim = claimed(conn)
    for act in (jobs.get, jobs.cancel, jobs.resume):
        with pytest.raises(NotFound):
            act(conn, "other", claim.id)
    assert jobs.list_jobs(conn, "other") == ([], None)
    assert not jobs.read_beat(conn, claim.id, claim.token).cancel


def test_pages_hold_every_job_once_newest_first(conn):
    made = [accepted(conn, kind="training" if i % 2 else "dataset")["id"] for i in range(7)]
    accepted(conn, tenant="other")
    seen, cursor = [], None
    while True:
        page, cursor = jobs.list_jobs(conn, "t", limit=3, cursor=cursor)
        seen += [job["id"] for job in page]
        if cursor is None:
            break
    assert seen == sorted(made, reverse=True)
    assert {job["kind"] for job in jobs.list_jobs(conn, "t", kind="dataset")[0]} == {"dataset"}
    assert jobs.list_jobs(conn, "t", state="running") == ([], None)
    assert jobs.list_jobs(conn, "t", limit=7)[1] is None


@pytest.mark.parametrize("bad", [{"cursor": "\0"}, {"cursor": "x' OR 1=1"}, {"state": "x"}, {"kind": "\0"}])
def test_malformed_filters_are_named(conn, bad):
    with pytest.raises(InvalidRequest):
        jobs.list_jobs(conn, "t", **bad)


@pytest.mark.parametrize("bad", ["", "\0", "\ud800", "x" * 5000, "01A2027D-F366-7F0B-9019-7F816F2DB074"])
def test_a_malformed_id_is_not_found(conn, bad):
    with pytest.raises(NotFound):
        jobs.get(conn, "t", bad)


@pytest.mark.parametrize("bad", ["", "\0", "a b", "\ud800", "é", "x" * 65])
def test_malformed_words_are_refused_before_the_database_sees_them(conn, bad):
    with pytest.raises(InvalidRequest):
        jobs.accept(conn, tenant=bad, kind="training", spec={})
    with pytest.raises(InvalidRequest):
        jobs.accept(conn, tenant="t", kind=bad, spec={})


def test_specs_keep_their_text(conn):
    spec = {"name": "𝕏\0\ud800", "é": [1e308, None, True]}
    job = jobs.accept(conn, tenant="t", kind="training", spec=spec)[0]
    assert jobs.get(conn, "t", job["id"])["spec"] == spec


def test_a_tenant_has_a_maximum_number_of_active_jobs(conn, configure):
    configure(ANAMORPH_MAX_JOBS_PER_TENANT=2)
    one = claimed(conn)
    accepted(conn)
    accepted(conn, tenant="other")
    with pytest.raises(QuotaExceeded):
        accepted(conn)
    jobs.finish(conn, one.id, one.token, {})
    accepted(conn)
    assert jobs.active_count(conn, "t") == 2


def test_counts_are_by_kind_and_state(conn):
    accepted(conn), claimed(conn), claimed(conn, kind="dataset", tenant="other")
    assert jobs.counts(conn) == {("training", "queued"): 1, ("training", "running"): 1, ("dataset", "running"): 1}


def test_counts_follow_every_ending_and_resume(conn):
    done, failed = claimed(conn), claimed(conn)
    jobs.finish(conn, done.id, done.token, {})
    jobs.fail(conn, failed.id, failed.token, {"code": "x"})
    jobs.cancel(conn, "t", accepted(conn, kind="dataset")["id"])
    ended = {("training", "succeeded"): 1, ("training", "failed"): 1, ("dataset", "canceled"): 1}
    assert jobs.counts(conn) == ended
    cleanup.sum_ended(conn)
    assert jobs.counts(conn) == ended
    jobs.resume(conn, "t", failed.id)
    assert jobs.counts(conn) == {
        ("training", "succeeded"): 1,
        ("training", "queued"): 1,
        ("dataset", "canceled"): 1,
    }
    cleanup.sum_ended(conn)
    assert len(conn.execute(select(ended_jobs)).all()) == 3


@pytest.mark.parametrize(
    "filters", [{}, {"state": "queued"}, {"kind": "training"}, {"kind": "report", "state": "failed"}]
)
def test_a_list_reads_only_rows_of_its_page(engine, filters):
    """The query plan: an index whose columns are the tenant, the filters and the id."""
    plans = []

    def explain(conn, cursor, statement, parameters, *_):
        if engine.dialect.name == "sqlite" and statement.startswith("SELECT"):
            rows = cursor.connection.cursor().execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall()
            plans.extend(row[3] for row in rows)

    event.listen(engine, "before_cursor_execute", explain)
    try:
        with reading(engine) as conn:
            jobs.list_jobs(conn, "t", **filters)
            cleanup.outlived(conn)
    finally:
        event.remove(engine, "before_cursor_execute", explain)
    columns = "_".join(["tenant", *sorted(filters), "id"])
    if engine.dialect.name == "sqlite":
        assert f"ix_jobs_{columns} (" in plans[0] and "ix_jobs_checkpoint (" in plans[1], plans
        assert not any("TEMP B-TREE" in plan for plan in plans[:1])
