"""The look at the workers, and what a killed front leaves behind."""

import asyncio
import os
import threading
import time

import pytest

from app.api.http.worker_watch import WorkerWatch
from app.api.jobs import uploads
from app.core.jobs import workers as worker_rows
from app.core.settings import settings
from app.core.store.database import transaction
from tests.app.conftest import Lane

pytestmark = pytest.mark.anyio


def come(worker: str, queue: str = "infer") -> None:
    with transaction() as conn:
        worker_rows.beat(conn, worker, [queue])


def go(worker: str) -> None:
    with transaction() as conn:
        worker_rows.leave(conn, worker)


async def test_calls_are_sent_again_once_a_new_worker_is_there(home):
    lane = Lane()
    watch = WorkerWatch(lane)
    come("a")
    await watch.check_workers()
    await watch.check_workers()
    assert not lane.recovered, "the first look is no change"
    go("a")
    await watch.check_workers()
    assert not lane.recovered, "nobody is there to send to"
    come("b")
    await watch.check_workers()
    assert lane.recovered == 1
    come("c", queue="train")
    await watch.check_workers()
    assert lane.recovered == 1, "who trains answers no calls"


async def test_calls_are_told_whether_an_inference_worker_lives(home):
    calls = Lane()
    watch = WorkerWatch(calls)
    assert calls.has_workers, "before the first look nothing is known"
    come("c", queue="train")
    await watch.check_workers()
    assert not calls.has_workers
    come("a")
    await watch.check_workers()
    assert calls.has_workers


async def test_stopping_waits_for_the_look_in_progress(home, monkeypatch):
    begun, go_on, ended = threading.Event(), threading.Event(), []

    def check_workers():
        begun.set()
        go_on.wait(10)
        ended.append(True)
        return {}

    monkeypatch.setattr("app.api.http.worker_watch._by_queue", check_workers)
    watch = WorkerWatch(Lane())
    watch.start()
    while not begun.is_set():
        await asyncio.sleep(0.01)
    stopping = asyncio.ensure_future(watch.stop())
    await asyncio.sleep(0.05)
    assert not stopping.done()
    go_on.set()
    await stopping
    assert ended == [True]


def test_uploads_that_a_killed_front_left_are_deleted_after_a_day(home):
    folder = settings().data_dir / "incoming"
    folder.mkdir()
    for name, age in (("old", 90_000), ("young", 60)):
        (folder / name).write_bytes(b"x")
        os.utime(folder / name, (time.time() - age,) * 2)
    uploads.forget_stale()
    assert [path.name for path in folder.iterdir()] == ["young"]
