"""The look at the workers, and what a killed front leaves behind."""

import os
import time

import msgpack
import pytest
import redis

from app.api.http import worker_watch
from app.api.http.worker_watch import WorkerWatch
from app.api.jobs import uploads
from app.core.calls.client import CallClient
from app.core.calls.messages import LIVE
from app.core.settings import settings
from tests.app.conftest import Lane

pytestmark = pytest.mark.anyio


async def look(watch: WorkerWatch, *workers: str, alive: bool = True) -> None:
    watch.calls.live, watch.calls.alive = {worker: {} for worker in workers}, alive
    await watch.check_workers()


async def test_calls_are_sent_again_once_a_new_worker_is_there():
    watch = WorkerWatch(lane := Lane())
    await look(watch, "a")
    await look(watch, "a")
    assert not lane.recovered, "the first look is no change"
    await look(watch)
    assert not lane.recovered, "nobody is there to send to"
    await look(watch, "b")
    assert lane.recovered == 1


async def test_the_key_of_a_replaced_worker_that_ends_is_no_second_loss(monkeypatch):
    watch = WorkerWatch(lane := Lane())
    await look(watch, "dead")
    await look(watch, "dead", "new")
    await look(watch, "new")
    assert lane.recovered == 1
    await look(watch, "new", "other")
    monkeypatch.setattr(worker_watch, "REPLACED_SECONDS", 0)
    await look(watch, "new")
    assert lane.recovered == 3


async def test_calls_are_told_whether_an_inference_worker_lives():
    watch = WorkerWatch(lane := Lane())
    assert lane.has_workers, "before the first look nothing is known"
    await look(watch)
    assert not lane.has_workers
    await look(watch, "a")
    assert lane.has_workers


async def test_a_lost_broker_is_no_lost_worker(monkeypatch):
    watch = WorkerWatch(lane := Lane())
    await look(watch, "a")
    await look(watch, alive=False)
    assert lane.has_workers, "calls say themselves that the broker cannot be reached"
    await look(watch)
    assert lane.has_workers, "it may have started empty"
    monkeypatch.setattr(worker_watch, "EMPTY_SECONDS", 0)
    await look(watch)
    assert not lane.has_workers


async def test_liveness_needs_no_database(monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    watch = WorkerWatch(lane := Lane())
    await look(watch, "a")
    assert lane.has_workers and watch.state == "ok"


async def test_keys_of_live_workers_are_read_from_the_broker(valkey):
    client = CallClient(valkey.url.replace("redis+socket", "unix"))
    assert await client.live_workers() == {}
    with redis.Redis(unix_socket_path=str(valkey.socket)) as broker:
        broker.set("other", b"x")
        broker.set(f"{LIVE}host:1", msgpack.packb({"late": 0.5}))
    assert await client.live_workers() == {"host:1": {"late": 0.5}}
    valkey.stop()
    assert await client.live_workers() is None
    await client.stop()


def test_uploads_that_a_killed_front_left_are_deleted_after_a_day(home):
    folder = settings().data_dir / "incoming"
    folder.mkdir()
    for name, age in (("old", 90_000), ("young", 60)):
        (folder / name).write_bytes(b"x")
        os.utime(folder / name, (time.time() - age,) * 2)
    uploads.forget_stale()
    assert [path.name for path in folder.iterdir()] == ["young"]
