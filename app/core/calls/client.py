"""The web front's side of calls: they are collected into micro-batches, answers come back on one list.

There is no timer: while fewer than `in_flight` micro-batches are unanswered, all waiting calls are sent at the end of
the event loop's tick; calls that arrive meanwhile form the next one. A slow call travels alone, in a window of its own
(`slow_in_flight`). Tenants take turns in both. Nothing here is durable: a call has a deadline.
"""

import asyncio
import itertools
import math
import time
import uuid
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from app.core.calls.messages import (
    GONE,
    LIVE,
    QUEUE,
    Answer,
    Call,
    pack_calls,
    pack_gone,
    task_message,
    unpack_live,
    unpack_reply,
)
from app.core.errors import AnamorphError, ClientGone, DeadlineExceeded, Overloaded, Unavailable, WorkerLost

BATCH_BYTES = 8 << 20  # larger entries would occupy the broker's only thread for too long
LATER = 16
"""Maximum micro-batches that take longer than predicted and that others may overtake."""
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
    """`apart`: it is slow, or a worker said that it takes long, so it does not hold up the others."""

    members: dict[int, _Waiting]
    weight: int
    slow: bool = False
    apart: bool = False
    sent_at: float = field(default_factory=time.monotonic)
    repeated: bool = False


class _Turns:
    """Calls that wait, in the order of arrival for each tenant; tenants take turns."""

    def __init__(self) -> None:
        self.weight = 0
        self.weights: dict[str, int] = {}
        self._calls: dict[str, dict[int, _Waiting]] = {}

    def __bool__(self) -> bool:
        return bool(self._calls)

    def add(self, waiting: _Waiting) -> None:
        tenant = waiting.call.tenant
        self._calls.setdefault(tenant, {})[waiting.number] = waiting
        self._count(tenant, waiting.call.weight)

    def remove(self, waiting: _Waiting) -> None:
        """Removes a call, if it is there."""
        tenant = waiting.call.tenant
        calls = self._calls.get(tenant, {})
        if calls.pop(waiting.number, None):
            self._count(tenant, -waiting.call.weight)
            if not calls:
                del self._calls[tenant], self.weights[tenant]

    def peek(self) -> _Waiting:
        """The oldest call of the tenant whose turn it is."""
        return next(iter(next(iter(self._calls.values())).values()))

    def take(self, waiting: _Waiting) -> None:
        """Removes a call; its tenant is then the last in turn."""
        self.remove(waiting)
        tenant = waiting.call.tenant
        if tenant in self._calls:
            self._calls[tenant] = self._calls.pop(tenant)

    def newest_of_largest(self) -> _Waiting:
        """The newest call of the tenant with the most images here."""
        return next(reversed(self._calls[max(self.weights, key=self.weights.__getitem__)].values()))

    def cheapest(self, running: Counter[str]) -> _Waiting:
        """The cheapest call of the tenant with the fewest `running` calls."""
        tenant = min(self._calls, key=running.__getitem__)
        return min(self._calls[tenant].values(), key=lambda waiting: waiting.call.price)

    def prices(self) -> dict[str, float]:
        """Seconds of compute that wait, by tenant."""
        return {tenant: sum(each.call.price for each in calls.values()) for tenant, calls in self._calls.items()}

    def _count(self, tenant: str, weight: int) -> None:
        self.weight += weight
        self.weights[tenant] = self.weights.get(tenant, 0) + weight


class CallClient:
    """One per front-end process: `start()` it, `submit()` calls, `stop()` it."""

    def __init__(
        self, redis_url: str, *, batch: int = 64, in_flight: int = 2, queue_limit: int = 2048, slow_in_flight: int = 8,
        wait_seconds: float = math.inf,
    ):  # fmt: skip
        self.batch, self.in_flight, self.queue_limit = batch, in_flight, queue_limit
        self.slow_in_flight, self.wait_limit = slow_in_flight, wait_seconds
        self.replies = f"replies:{uuid.uuid4().hex}"
        self.has_workers = True  # set by WorkerWatch
        self._seconds_per_image = 0.01
        self._queue, self._slow = _Turns(), _Turns()
        self._calls: dict[int, _Waiting] = {}
        self._batches: set[_Batch] = set()
        self._gone: list[int] = []
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
        """The answer. Raises the error of the worker, WorkerLost, Overloaded, Unavailable, DeadlineExceeded or
        ClientGone."""
        if not self.has_workers:
            raise WorkerLost("No inference worker is running.", retry_after=3)
        self._admit(call)
        waiting = _Waiting(next(self._numbers), call, asyncio.get_running_loop().create_future())
        self._calls[waiting.number] = waiting
        (self._slow if call.slow else self._queue).add(waiting)
        self._arm()
        try:
            async with asyncio.timeout(max(0.0, call.deadline - time.monotonic())):
                return await waiting.future
        except TimeoutError:
            raise self._late(waiting) from None
        except (ClientGone, asyncio.CancelledError):
            self._tell_gone(waiting)
            raise
        finally:
            self._forget(waiting)

    def abandon(self, call: Call) -> None:
        """The client of a call has left: `submit` raises ClientGone, and workers are told."""
        for waiting in self._calls.values():
            if waiting.call is call:
                self._fail(waiting, ClientGone("The client left before the answer."))

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
        return min(60, max(1, math.ceil(self._queue.weight * self._seconds_per_image)))

    @property
    def waiting_weight(self) -> int:
        """Images of the calls that wait here."""
        return self._queue.weight + self._slow.weight

    @property
    def batches_out(self) -> int:
        return len(self._batches)

    # ---- what is accepted

    def _admit(self, call: Call) -> None:
        """Raises Overloaded for a call that would wait too long."""
        left = call.deadline - time.monotonic()
        if call.slow:
            seconds = self._slow_seconds(call)
            if seconds > call.price and seconds > left:
                detail = f"Long calls wait already: this one would end in about {seconds:.0f} s, after its deadline."
                remedy = "Retry later, or send 'Prefer: respond-async' to make the request a job."
                raise Overloaded(detail, remedy=remedy, retry_after=min(600, math.ceil(seconds - call.price)))
            return
        seconds = self._queue.weight * self._seconds_per_image
        if self._queue and seconds > min(left, self.wait_limit):
            detail = f"{self._queue.weight} images are waiting already, for about {seconds:.0f} s."
            raise Overloaded(detail, retry_after=self.wait_seconds())
        while self._queue and self._queue.weight + call.weight > self.queue_limit:
            newest, weights = self._queue.newest_of_largest(), self._queue.weights
            error = Overloaded(f"{self._queue.weight} images are waiting already.", retry_after=self.wait_seconds())
            if weights[newest.call.tenant] <= weights.get(call.tenant, 0) + call.weight:
                raise error
            self._queue.remove(newest)  # it gives way to a tenant with fewer images here
            self._fail(newest, error)

    def _slow_seconds(self, call: Call) -> float:
        """Predicted seconds until a slow call would be answered: tenants share the compute equally."""
        ahead = Counter(self._slow.prices())
        for waiting, batch in self._slow_out:
            ahead[waiting.call.tenant] += max(0.0, waiting.call.price - (time.monotonic() - batch.sent_at))
        own = ahead.pop(call.tenant, 0.0) + call.price
        return own + sum(min(own, other) for other in ahead.values())

    # ---- the way of a call

    def _late(self, waiting: _Waiting) -> AnamorphError:
        if waiting.batch is None:
            return Overloaded("The call did not start before its deadline.", retry_after=self.wait_seconds())
        remedy = "Ask for less, or send 'Prefer: respond-async' to make the request a job."
        return DeadlineExceeded("No worker answered before the deadline.", remedy=remedy, retry_after=5)

    def _forget(self, waiting: _Waiting) -> None:
        self._calls.pop(waiting.number, None)
        if waiting.batch is None:
            (self._slow if waiting.call.slow else self._queue).remove(waiting)
        else:
            waiting.batch.members.pop(waiting.number, None)
            if not waiting.batch.members:
                self._batches.discard(waiting.batch)
        self._arm()

    def _tell_gone(self, waiting: _Waiting) -> None:
        """Tells the workers, at the end of the tick, of calls that were sent and that nobody waits for."""
        if waiting.batch is None:
            return
        self._gone.append(waiting.number)
        if len(self._gone) == 1:
            self._spawn(self._publish_gone())

    async def _publish_gone(self) -> None:
        numbers, self._gone = self._gone, []
        try:
            await self._sender.publish(GONE, pack_gone(self.replies, numbers))
        except BROKER_ERRORS as error:
            log.warning("calls.gone_untold", calls=len(numbers), error=type(error).__name__)

    @property
    def _has_room(self) -> bool:
        return bool(self._queue) and sum(not batch.apart for batch in self._batches) < self.in_flight

    @property
    def _has_slow_room(self) -> bool:
        return bool(self._slow) and sum(batch.slow for batch in self._batches) < self.slow_in_flight

    @property
    def _slow_out(self) -> list[tuple[_Waiting, _Batch]]:
        return [(waiting, batch) for batch in self._batches if batch.slow for waiting in batch.members.values()]

    def _arm(self) -> None:
        if not self._armed and (self._has_room or self._has_slow_room):
            self._armed = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._armed = False
        while self._has_room:
            self._start(self._take())
        while self._has_slow_room:
            waiting = self._slow.cheapest(Counter(waiting.call.tenant for waiting, _ in self._slow_out))
            self._slow.remove(waiting)
            self._start(_Batch({waiting.number: waiting}, waiting.call.weight, slow=True, apart=True))

    def _start(self, batch: _Batch) -> None:
        for waiting in batch.members.values():
            waiting.batch = batch
        self._batches.add(batch)
        self._spawn(self._send(batch))

    def _take(self) -> _Batch:
        members: dict[int, _Waiting] = {}
        weight = size = 0
        while self._queue:
            waiting = self._queue.peek()
            weight += waiting.call.weight
            size += sum(map(len, waiting.call.images or ())) + len(waiting.call.latents or b"")
            if members and (weight > self.batch or size > BATCH_BYTES):
                weight -= waiting.call.weight
                break
            self._queue.take(waiting)
            members[waiting.number] = waiting
        return _Batch(members, weight)

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
        if batch and sum(other.apart and not other.slow for other in self._batches) < LATER:
            batch.apart = True
            self._arm()

    def _measure(self, waiting: _Waiting) -> None:
        if waiting.batch and not waiting.batch.apart:
            spent = (time.monotonic() - waiting.batch.sent_at) / max(1, waiting.batch.weight) / self.in_flight
            self._seconds_per_image += 0.05 * (spent - self._seconds_per_image)

    def _fail(self, waiting: _Waiting, error: AnamorphError) -> None:
        if not waiting.future.done():
            waiting.future.set_exception(error)

    def _spawn(self, work) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
