"""Overload is refused once the headers are read: counts of calls, with an application that never answers."""

import asyncio

import pytest

from app.api.http.middleware import BUSY, FIRST_RATE, Admission

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Front:
    """`Admission` in front of calls that are answered when `end` says so."""

    def __init__(self, seconds: float):
        self.waiting: list[asyncio.Event] = []
        self.bodies = 0
        self.admission = Admission(self.answer, seconds)
        self.tasks: set[asyncio.Task] = set()
        self.statuses: list[int] = []

    async def answer(self, scope, receive, send):
        self.bodies += 1
        event = asyncio.Event()
        self.waiting.append(event)
        await event.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(self, count: int, client: str = "1.2.3.4", path: str = "/v1/models/m/classify") -> list[int]:
        """The statuses of the requests that were answered at once."""
        self.statuses = statuses = []
        scope = {"type": "http", "path": path, "method": "POST", "headers": [], "client": (client, 1)}

        async def note(message):
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        for _ in range(count):
            self.tasks.add(asyncio.create_task(self.admission(dict(scope), None, note)))
        for _ in range(3):
            await asyncio.sleep(0)
        return list(statuses)

    async def end(self, count: int) -> None:
        for _ in range(count):
            self.waiting.pop(0).set()
        for _ in range(5):
            await asyncio.sleep(0)


async def test_calls_beyond_the_predicted_wait_are_refused_before_they_are_read():
    front = Front(seconds=2)
    most = int(FIRST_RATE * 2)
    assert await front.send(most, "a") == [503] * (most // 4), "one client leaves a quarter of the places"
    assert await front.send(most, "b") == [503] * (most - most // 4)
    assert front.bodies == most
    await front.end(10)
    assert len(await front.send(20, "c")) == 10


async def test_other_paths_are_never_refused():
    front = Front(seconds=0.001)
    await front.send(BUSY + 10)
    assert await front.send(50, path="/v1/jobs") == []


async def test_a_slow_call_leaves_the_count_once_it_is_known():
    front = Front(seconds=0.001)

    async def slow(scope, receive, send):
        scope["leave_admission"]()
        scope["leave_admission"]()
        await asyncio.Event().wait()

    front.admission.app = slow
    assert await front.send(10 * BUSY) == [] and front.admission.total == 0 and not front.admission.here


async def test_the_rate_follows_what_is_answered_while_many_wait(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("app.api.http.middleware.perf_counter", lambda: now[0])
    front = Front(seconds=5)
    await front.send(500)
    for _ in range(20):
        now[0] += 1.0
        await front.end(20)  # 20 per second
    assert front.admission.rate < 40
    assert await front.send(1) == [503]
