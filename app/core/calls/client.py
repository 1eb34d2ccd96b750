"""The web front's side of calls: they are collected into micro-batches, answers come back on one list.

There is no timer: while fewer than `in_flight` micro-batches are unanswered, all waiting calls are sent at the end of
the event loop's tick; calls that arrive meanwhile form the next one. Nothing here is durable: a call has a deadline.
"""

import asyncio
import itertools
import math
import time
import uuid
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from app.core.calls.messages import LIVE, QUEUE, Answer, Call, pack_calls, task_message, unpack_live, unpack_reply
from app.core.errors import AnamorphError, DeadlineExceeded, Overloaded, Unavailable, WorkerLost

BATCH_BYTES = 8 << 20  # larger entries would occupy the broker's only thread for too long
LATER = 16
"""Micro-batches that others may overtake, at most."""
BROKER_ERRORS = (RedisError, OSError, asyncio.TimeoutError)
log = structlog.get_logger(__name__)

__all__ = ["Answer", "Call", "CallClient"]


@dataclass(slots=True, eq=False)
class _Waiting:
    number: int
    call: Call
    future: asyncio.Future
    batch: "_Batch | None" = None


@dataclass(slots=True, eq=False)
class _Batch:
    members: dict[int, _Waiting]
    weight: int
    sent_at: float = field(default_factory=time.monotonic)
    repeated: bool = False
    later: bool = False


class CallClient:
    """One per front-end process: `start()` it, `submit()` calls, `stop()` it."""

    def __init__(self, redis_url: str, *, batch: int = 64, in_flight: int = 2, queue_limit: int = 2048):
        self.batch, self.in_flight, self.queue_limit = batch, in_flight, queue_limit
        self.replies = f"replies:{uuid.uuid4().hex}"
        self.waiting_weight = 0
        self.has_workers = True  # set by WorkerWatch
        self._seconds_per_image = 0.01
        self._queue: deque[_Waiting] = deque()
        self._calls: dict[int, _Waiting] = {}
        self._batches: set[_Batch] = set()
        self._numbers = itertools.count(1)
        self._armed = False
        self._tasks: set[asyncio.Task] = set()
        once = Retry(NoBackoff(), 1)  # a connection that broke while idle is replaced silently
        timeouts = {"socket_connect_timeout": 2, "socket_keepalive": True} if not redis_url.startswith("unix") else {}
        self._sender = Redis.from_url(redis_url, socket_timeout=5, retry=once, **timeouts)
        self._listener = Redis.from_url(redis_url, socket_timeout=15, retry=Retry(NoBackoff(), 0), **timeouts)

    async def start(self) -> None:
        self._spawn(self._listen())

    async def stop(self) -> None:
        for waiting in list(self._calls.values()):
            self._fail(waiting, Unavailable("The service is shutting down.", retry_after=2))
        while self._tasks:  # Python 3.11's wait_for inside redis-py may swallow a cancellation
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(list(self._tasks), timeout=0.2)
        await self._sender.aclose()
        await self._listener.aclose()

    async def ping(self) -> bool:
        """Whether the broker answers."""
        with suppress(*BROKER_ERRORS):
            return bool(await self._sender.ping())
        return False

    async def live_workers(self) -> dict[str, dict[str, Any]] | None:
        """The inference workers that live, by id (`unpack_live`); None if the broker does not answer."""
        try:
            keys = [key async for key in self._sender.scan_iter(f"{LIVE}*", 1000)]
            return unpack_live(zip(keys, await self._sender.mget(keys), strict=True)) if keys else {}
        except BROKER_ERRORS:
            return None

    async def submit(self, call: Call) -> Answer:
        """The answer. Raises the error of the worker, WorkerLost, Overloaded, Unavailable or DeadlineExceeded."""
        if not self.has_workers:
            raise WorkerLost("No inference worker is running.", retry_after=3)
        if self.waiting_weight and self.waiting_weight + call.weight > self.queue_limit:
            raise Overloaded(f"{self.waiting_weight} images are waiting already.", retry_after=self.wait_seconds())
        waiting = _Waiting(next(self._numbers), call, asyncio.get_running_loop().create_future())
        self._calls[waiting.number] = waiting
        self._queue.append(waiting)
        self.waiting_weight += call.weight
        self._arm()
        try:
            async with asyncio.timeout(max(0.0, call.deadline - time.monotonic())):
                return await waiting.future
        except TimeoutError:
            raise self._late(waiting) from None
        finally:
            self._forget(waiting)

    async def recover(self) -> None:
        """Sends unanswered micro-batches once more, after a lost connection or a change of the workers.

        Answers depend on the request alone, and the second of two is dropped. A batch lost twice raises WorkerLost.
        """
        for batch in list(self._batches):
            if batch.repeated:
                for waiting in list(batch.members.values()):
                    self._fail(waiting, WorkerLost("The worker stopped before it answered.", retry_after=2))
            else:
                batch.repeated = True
                await self._send(batch)

    def wait_seconds(self) -> int:
        """Estimated seconds until the calls that wait now are answered, for Retry-After."""
        return min(60, max(1, math.ceil(self.waiting_weight * self._seconds_per_image)))

    @property
    def batches_out(self) -> int:
        return len(self._batches)

    @property
    def _under_way(self) -> int:
        return sum(not batch.later for batch in self._batches)

    def _late(self, waiting: _Waiting) -> AnamorphError:
        if waiting.batch is None:
            return Overloaded(
                "The call did not start before its deadline.",
                retry_after=self.wait_seconds(),
            )
        return DeadlineExceeded(
            "No worker answered before the deadline.",
            remedy="Ask for less, or send 'Prefer: respond-async' to make the request a job.",
            retry_after=5,
        )

    def _forget(self, waiting: _Waiting) -> None:
        self._calls.pop(waiting.number, None)
        if waiting.batch is None:
            with suppress(ValueError):
                self._queue.remove(waiting)
                self.waiting_weight -= waiting.call.weight
        else:
            waiting.batch.members.pop(waiting.number, None)
            if not waiting.batch.members:
                self._batches.discard(waiting.batch)
        self._arm()

    def _arm(self) -> None:
        if self._queue and not self._armed and self._under_way < self.in_flight:
            self._armed = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._armed = False
        while self._queue and self._under_way < self.in_flight:
            batch = self._take()
            self._batches.add(batch)
            self._spawn(self._send(batch))

    def _take(self) -> _Batch:
        members, weight, size = {}, 0, 0
        while self._queue:
            waiting = self._queue[0]
            weight += waiting.call.weight
            size += sum(map(len, waiting.call.images or ())) + len(waiting.call.latents or b"")
            if members and (weight > self.batch or size > BATCH_BYTES):
                weight -= waiting.call.weight
                break
            members[waiting.number] = self._queue.popleft()
        self.waiting_weight -= weight
        batch = _Batch(members, weight)
        for waiting in members.values():
            waiting.batch = batch
        return batch

    async def _send(self, batch: _Batch) -> None:
        calls = [(waiting.number, waiting.call) for waiting in batch.members.values()]
        try:
            await self._sender.lpush(QUEUE, task_message(pack_calls(self.replies, calls)))
        except BROKER_ERRORS as error:
            log.warning("calls.unsent", calls=len(calls), error=type(error).__name__)
            for waiting in list(batch.members.values()):
                self._fail(waiting, Unavailable("The broker cannot be reached.", retry_after=2))

    async def _listen(self) -> None:
        pause = 0.05
        while True:
            try:
                reply = await self._listener.blpop([self.replies], timeout=5)
                pause = 0.05
            except BROKER_ERRORS as error:
                log.warning("calls.broker_lost", error=type(error).__name__)
                await asyncio.sleep(pause)
                pause = min(2.0, pause * 2)
                await self.recover()
                continue
            if reply:
                self._deliver(reply[1])

    def _deliver(self, reply: bytes) -> None:
        try:
            outcomes = list(unpack_reply(reply))
        except Exception:  # not written by a worker of ours; the listener must go on
            log.exception("calls.unreadable_reply", size=len(reply))
            return
        for number, outcome in outcomes:
            waiting = self._calls.get(number)
            if waiting is None or waiting.future.done():
                continue
            if outcome is None:
                self._let_pass(waiting.batch)
                continue
            self._measure(waiting)
            if isinstance(outcome, AnamorphError):
                waiting.future.set_exception(outcome)
            else:
                waiting.future.set_result(outcome)

    def _let_pass(self, batch: _Batch | None) -> None:
        """Sends others while this one takes long: its model is being loaded, or it costs more than was predicted."""
        if batch and sum(other.later for other in self._batches) < LATER:
            batch.later = True
            self._arm()

    def _measure(self, waiting: _Waiting) -> None:
        if waiting.batch:
            spent = (time.monotonic() - waiting.batch.sent_at) / max(1, waiting.batch.weight) / self.in_flight
            self._seconds_per_image += 0.05 * (spent - self._seconds_per_image)

    def _fail(self, waiting: _Waiting, error: AnamorphError) -> None:
        if not waiting.future.done():
            waiting.future.set_exception(error)

    def _spawn(self, work) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
