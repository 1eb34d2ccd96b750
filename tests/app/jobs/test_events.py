"""Events in order, curves without doubles."""

import threading

import pytest

from app.core.jobs import events
from app.core.jobs import state as jobs
from app.core.jobs.state import LeaseLost
from app.core.store.database import reading, transaction


@pytest.fixture
def claim(engine):
    with transaction(engine, durable=False) as conn:
        job, _ = jobs.accept(conn, tenant="t", kind="training", spec={})
        return jobs.claim(conn, job["id"], "w")


def test_event_numbers_have_no_gaps_and_no_duplicates(engine, claim):
    def write():
        for _ in range(10):
            with transaction(engine, durable=False) as conn:
                jobs.add_event(conn, claim.id, claim.token, "log", {})

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with reading(engine) as conn:
        seen = events.events_after(conn, claim.id)
        assert [event["seq"] for event in seen] == list(range(1, 83))
        assert [event["seq"] for event in events.events_after(conn, claim.id, 80)] == [81, 82]
        assert len(events.events_after(conn, claim.id, limit=5)) == 5
        assert sorted(event["at"] for event in seen) == [event["at"] for event in seen]


def test_a_resumed_attempt_overwrites_its_curve(engine, claim):
    def record(claim, *points):
        with transaction(engine, durable=False) as conn:
            for images, values in points:
                events.add_metrics(conn, claim.id, claim.token, images, values)

    record(claim, (10, {"loss": 3.0}), (20, {"loss": 2.0}), (20, {"fid": 9.0}))
    with transaction(engine, durable=False) as conn:
        jobs.release(conn, claim.id, claim.token)
        second = jobs.claim(conn, claim.id, "w")
    record(second, (20, {"loss": 2.5}), (30, {"loss": float("nan")}))
    with reading(engine) as conn:
        assert events.metrics(conn, claim.id) == [
            {"images": 10, "values": {"loss": 3.0}},
            {"images": 20, "values": {"loss": 2.5}},
            {"images": 30, "values": {"loss": None}},
        ]
        assert [point["images"] for point in events.metrics(conn, claim.id, after=10, limit=1)] == [20]
        assert [event["attempt"] for event in events.events_after(conn, claim.id)] == [0, 1, 1, 1, 1, 1, 2, 2, 2]


def test_many_points_at_once_are_stored_like_single_ones(engine, claim):
    with transaction(engine, durable=False) as conn:
        events.add_curve(conn, claim.id, claim.token, [(8, {"loss": 3.0}), (16, {"loss": float("nan")})])
        events.add_metrics(conn, claim.id, claim.token, 24, {"loss": 1.0})
        events.add_curve(conn, claim.id, claim.token, [(16, {"loss": 2.0}), (32, {"loss": 0.5})])
    with reading(engine) as conn:
        points = [(point["images"], point["values"]["loss"]) for point in events.metrics(conn, claim.id)]
        told = [event for event in events.events_after(conn, claim.id) if event["kind"] == "metrics"]
    assert points == [(8, 3.0), (16, 2.0), (24, 1.0), (32, 0.5)]
    assert [event["seq"] for event in told] == [3, 4, 5, 6, 7] and {event["attempt"] for event in told} == {1}
    assert [event["data"]["images"] for event in told] == [8, 16, 24, 16, 32]


def test_events_with_a_wrong_token_are_refused(engine, claim):
    with pytest.raises(LeaseLost), transaction(engine, durable=False) as conn:
        jobs.add_event(conn, claim.id, "0" * 32, "log", {})


def test_events_say_who_wrote_them_by_the_writers_own_token(engine, claim):
    with transaction(engine, durable=False) as conn:
        events.add_curve(conn, claim.id, claim.token, [(8, {"loss": 3.0})])
        jobs.cancel(conn, "t", claim.id)
        jobs.release(conn, claim.id, claim.token)
        jobs.resume(conn, "t", claim.id)
        second = jobs.claim(conn, claim.id, "w")
        jobs.finish(conn, second.id, second.token, {})
    first_writer, second_writer = events.writer_of(claim.token), events.writer_of(second.token)
    with reading(engine) as conn:
        told = [(event["kind"], event["attempt"], event["writer"]) for event in events.events_after(conn, claim.id)]
    assert (events.attempt_of(claim.token), events.attempt_of(second.token)) == (1, 2)
    assert told == [
        ("queued", 0, None),
        ("running", 1, first_writer),
        ("metrics", 1, first_writer),
        ("cancel_requested", 1, None),
        ("canceled", 1, first_writer),
        ("queued", 1, None),
        ("running", 2, second_writer),
        ("succeeded", 2, second_writer),
    ]


def test_an_event_that_gets_past_the_fence_shows_whose_it_is(engine, claim):
    """What the kill drill rests on: the row's present attempt never stamps a writer of an earlier one."""
    with transaction(engine, durable=False) as conn:
        jobs.release(conn, claim.id, claim.token)
        jobs.claim(conn, claim.id, "w")
        events.append(conn, claim.id, "log", {}, by=claim.token)  # as if the token were not compared
    with reading(engine) as conn:
        last = events.events_after(conn, claim.id)[-1]
    assert (last["attempt"], last["writer"]) == (1, events.writer_of(claim.token))
