"""The order of computation in an inference worker: one thread computes at a time, long calls let others in between.

Calls that are predicted to be cheap are answered by the thread that receives them, a micro-batch at once. Slow ones
wait in a queue for one of a few threads, and so do calls to a model that must be loaded first. Whoever computes holds
the turn and offers it at every `models.deadline.check()`: to cheap calls at once, to other long ones after a slice,
the tenant with the least computation first.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from math import inf
from threading import Lock
from typing import Any

import msgpack
import structlog
from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from app.core.calls.messages import TASK
from app.core.jobs.queue import celery
from app.core.settings import settings
from workers.inference.queues import Executes, LoadQueue, SlowQueue

SLICE_SECONDS = 0.15
"""Computation of a long call before others that are as long have their turn."""
LONG_SECONDS = 0.3
"""A call that was taken for cheap is long after this much computation."""
PATIENCE_SECONDS = 0.5
"""Long calls get a slice at least this often, however many cheap ones wait."""
GONE_SECONDS, LOADERS = 60, 2
REPLY_SECONDS = 60
"""Lifetime of a reply that nobody fetches because its front end is gone."""
Call = dict[str, Any]
"""A call as it travels (app/core/calls/messages.py), its `reply_to`, and its `deadline` by this process's clock."""
Outcome = dict[str, Any]
log = structlog.get_logger(__name__)


class Turn:
    """The right to compute, for some calls. As the check of a computation it raises Abandoned once nobody waits for
    `members`, those computed at present, and lets others compute. Without members it is never abandoned.
    """

    def __init__(self, calls: list[Call], turns: "Turns | None" = None, long: bool = False):
        self.calls = self.members = calls
        self.outcomes: list[Outcome] = []  # of the calls, {} until there is one
        self.answered: set[int] = set()  # indices of calls that were answered, or given to another turn
        self.turns, self.long = turns or Turns(), long
        first = calls[0] if calls else {}
        self.tenant, self.price = first.get("tenant") or "", first.get("price") or 0.0
        self.made = self.since = self.checked = self.asked = time.monotonic()
        self.spent, self.held, self.guaranteed = 0.0, False, 0.0
        self.granted: Any = None

    def __call__(self) -> None:
        now = self.checked = time.monotonic()
        if self.members and not any(is_waited_for(call, now) for call in self.members):
            raise _abandoned()
        if self.held and (self.turns.waiting or not self.long):
            self.turns.offer(self, now)

    def take(self) -> None:
        """Waits for the turn, unless it is held already."""
        if not self.held:
            self.turns.take(self)

    def leave(self) -> None:
        if self.held:
            self.turns.leave(self)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Without the turn inside, with it afterwards."""
        self.leave()
        try:
            yield
        finally:
            self.take()

    @property
    def seconds(self) -> float:
        """Computation so far."""
        return self.spent + (time.monotonic() - self.since if self.held else 0.0)

    @property
    def due(self) -> float:
        """The last deadline of its calls."""
        return max((call.get("deadline", inf) for call in list(self.calls)), default=inf)


class Turns:
    """Who computes, and who is next: cheap calls in the order of arrival, then the tenant that computed least."""

    def __init__(self, became_long: Callable[[Turn], None] = lambda turn: None):
        self.holder: Turn | None = None
        self.waiting: list[Turn] = []
        self.became_long = became_long
        self._long: list[Turn] = []
        self._seconds: dict[str, float] = {}
        self._long_ended = 0.0
        self._lock = Lock()

    def take(self, turn: Turn) -> None:
        with self._lock:
            if self.holder is None:
                self._grant(turn, time.monotonic())
                return
            self._wait(turn, time.monotonic())
        turn.granted.acquire()

    def leave(self, turn: Turn) -> None:
        with self._lock:
            now = time.monotonic()
            self._charge(turn, now)
            self.holder = None
            if self.waiting:
                self._grant(self._next(now), now)

    def offer(self, turn: Turn, now: float) -> None:
        """Lets another one compute, if it is its turn, and returns when it is this one's again."""
        if not turn.long:
            if turn.spent + now - turn.since < LONG_SECONDS:
                return
            turn.long = True
            self.enter(turn)
            self.became_long(turn)
        with self._lock:
            if not self.waiting or now < turn.since + turn.guaranteed:
                return
            other = self._next(now)
            if other.long and (now - turn.since < SLICE_SECONDS or self._rank(other, now) > self._rank(turn, now)):
                return
            self._charge(turn, now)
            self._wait(turn, now)
            self._grant(other, now)
        turn.granted.acquire()

    def enter(self, turn: Turn) -> None:
        """Counts the computation of a long turn for its tenant, which starts level with the one that has least."""
        with self._lock:
            self._seconds.setdefault(turn.tenant, min(self._seconds.values(), default=0.0))
            self._long.append(turn)

    def exit(self, turn: Turn) -> None:
        with self._lock:
            if turn in self._long:
                self._long.remove(turn)
            if turn.tenant not in {other.tenant for other in self._long}:
                self._seconds.pop(turn.tenant, None)

    def seconds_of(self, tenant: str) -> float:
        """Computation of a tenant since its long calls are there."""
        return self._seconds.get(tenant, 0.0)

    def _rank(self, turn: Turn, now: float) -> tuple:
        running = now - turn.since if turn.held else 0.0
        return self._seconds.get(turn.tenant, 0.0) + running, turn.price, turn.made

    def _next(self, now: float) -> Turn:
        long = [turn for turn in self.waiting if turn.long]
        neglected = long and now - max(self._long_ended, min(turn.asked for turn in long)) > PATIENCE_SECONDS
        if len(long) == len(self.waiting) or neglected:
            turn = min(long, key=lambda turn: self._rank(turn, now))
            turn.guaranteed = SLICE_SECONDS if neglected else 0.0
            return turn
        return next(turn for turn in self.waiting if not turn.long)

    def _wait(self, turn: Turn, now: float) -> None:
        turn.asked, turn.granted = now, Lock()
        turn.granted.acquire()
        self.waiting.append(turn)

    def _grant(self, turn: Turn, now: float) -> None:
        self.holder, turn.held, turn.since = turn, True, now
        if turn in self.waiting:
            self.waiting.remove(turn)
            turn.granted.release()

    def _charge(self, turn: Turn, now: float) -> None:
        turn.held = False
        turn.spent += now - turn.since
        if turn.long:
            self._long_ended = now
            if turn.tenant in self._seconds:
                self._seconds[turn.tenant] += now - turn.since


class Lane:
    """One per process. `reply` pushes entries onto a reply list; `threads`: for slow calls."""

    def __init__(self, host: Executes, reply: Callable[[str, list[dict]], None], threads: int):
        self.host, self.reply = host, reply
        self.turns = Turns(self._became_long)
        self._known: dict[tuple[str, int], Call] = {}
        self._gone: OrderedDict[tuple[str, int], float] = OrderedDict()
        self.slow: SlowQueue[Turn] = SlowQueue(threads, self._compute_slow, self.turns.seconds_of)
        self.cold = LoadQueue(LOADERS, self._load)
        self._others = ThreadPoolExecutor(LOADERS, "split-batches")
        self._lock = Lock()

    def receive(self, payload: bytes) -> None:
        """Answers one micro-batch, or hands its calls to other threads. Drops those that nobody waits for, and those
        that came before and are not answered yet: fronts send again what may have been lost.
        """
        message = msgpack.unpackb(payload)
        now, reply_to, calls, late = time.monotonic(), message["reply_to"], [], 0
        with self._lock:
            for call in message["calls"]:
                key = reply_to, call["id"]
                call["reply_to"], call["deadline"] = reply_to, now + seconds_left(call)
                if call["deadline"] <= now:
                    late += 1
                elif key not in self._known and self._gone.pop(key, None) is None:
                    self._known[key] = call
                    calls.append(call)
        if late:
            log.info("calls.late", dropped=late)
        self._submit(calls)

    def forget(self, reply_to: str, numbers: list[int]) -> None:
        """Drops calls that nobody waits for any more; those under way end at their next check."""
        now = time.monotonic()
        with self._lock:
            for number in numbers:
                if call := self._known.get((reply_to, number)):
                    call["gone"] = True
                else:  # it may still be on its way
                    self._gone[reply_to, number] = now
            while self._gone and next(iter(self._gone.values())) < now - GONE_SECONDS:
                self._gone.popitem(last=False)
        dropped = self.slow.drop(lambda turn: "gone" in turn.calls[0])
        for turn in dropped:
            self.turns.exit(turn)
            self._release(turn.calls)

    def stop(self) -> None:
        """Drops long calls without an answer: the front sends them to the next worker."""
        for turn in [*self.slow.waiting, *self.slow.running]:
            turn.calls[0]["gone"] = True
        for call in [call for calls in list(self.cold.calls.values()) for call in calls]:
            call["gone"] = True

    def overdue(self) -> float:
        """Seconds since the computation under way passed the last deadline of its calls and its last check."""
        turn = self.turns.holder
        return 0.0 if turn is None else max(0.0, time.monotonic() - max(turn.due, turn.checked, turn.since))

    @property
    def busy_seconds(self) -> float:
        """Age of the computation under way; 0 without one."""
        turn = self.turns.holder
        return 0.0 if turn is None else time.monotonic() - turn.made

    def _submit(self, calls: list[Call], loaded: str | None = None) -> None:
        """Sorts the calls and answers the cheap ones. `loaded`: a model that was just loaded, if only for a moment."""
        ready = []
        for call in calls:
            if (digest := self.host.missing(call)) is not None and digest != loaded:
                self.cold.add(digest, call)
                self._announce([call])
            elif call.get("slow"):
                turn = Turn([call], self.turns, long=True)
                self.turns.enter(turn)
                self.slow.add(turn)
            else:
                ready.append(call)
        if ready:
            self._compute(Turn(ready, self.turns))

    def _compute(self, turn: Turn) -> None:
        try:
            outcomes = self.host.execute(turn.calls, turn)
        except Exception as error:
            outcomes = [self.host.problem(error)] * len(turn.calls)
        finally:
            turn.leave()
            if turn.long:
                self.turns.exit(turn)
        left = [index for index in range(len(turn.calls)) if index not in turn.answered]
        self._answer([turn.calls[index] for index in left], [outcomes[index] for index in left])

    def _became_long(self, turn: Turn) -> None:
        """Answers what is ready of a micro-batch whose present calls take long, and has others computed elsewhere."""
        ready = [index for index, outcome in enumerate(turn.outcomes) if outcome]
        members = {id(call) for call in turn.members}
        rest = [call for index, call in enumerate(turn.calls) if index not in ready and id(call) not in members]
        turn.answered = {index for index, call in enumerate(turn.calls) if id(call) not in members}
        self._announce(turn.members[:1])
        self._answer([turn.calls[index] for index in ready], [turn.outcomes[index] for index in ready])
        if rest:
            self._others.submit(self._compute, Turn(rest, self.turns))

    def _compute_slow(self, turn: Turn) -> None:
        if is_waited_for(turn.calls[0], time.monotonic()):
            self._compute(turn)
        else:
            self.turns.exit(turn)
            self._release(turn.calls)

    def _answer(self, calls: list[Call], outcomes: list[Outcome]) -> None:
        replies: dict[str, list[dict]] = {}
        for call, outcome in zip(calls, outcomes, strict=True):
            if "gone" not in call:
                replies.setdefault(call["reply_to"], []).append({"id": call["id"]} | outcome)
        for reply_to, entries in replies.items():
            self.reply(reply_to, entries)
        self._release(calls)

    def _release(self, calls: list[Call]) -> None:
        for call in calls:
            self._known.pop((call["reply_to"], call["id"]), None)

    def _load(self, digest: str, calls: list[Call]) -> None:
        turn, failure = Turn(calls, self.turns, long=True), None
        turn.members = []  # others will want the model
        self.turns.enter(turn)
        try:
            self.host.load(digest, turn)
        except Exception as error:
            failure = self.host.problem(error)
        finally:
            turn.leave()
            self.turns.exit(turn)
        calls, now = self.cold.take(digest), time.monotonic()
        dropped = [call for call in calls if not is_waited_for(call, now)]
        self._release(dropped)
        calls = [call for call in calls if is_waited_for(call, now)]
        if failure:
            self._answer(calls, [failure] * len(calls))
        else:
            self._submit(calls, loaded=digest)

    def _announce(self, calls: list[Call]) -> None:
        """Tells the fronts that these calls take longer, so that they send others meanwhile."""
        for call in calls:
            self.reply(call["reply_to"], [{"id": call["id"], "later": True}])


def seconds_left(call: Call) -> float:
    """Seconds until the deadline of a call that has just come; older fronts send a date."""
    left = call.get("seconds_left")
    if left is None:
        left = call["deadline"] - time.time() if call.get("deadline") else inf
    return left


def _abandoned() -> Exception:
    from models.deadline import Abandoned  # imports torch, which is there once something is computed

    return Abandoned("The answer took too long and was given up.")


def is_waited_for(call: Call, now: float) -> bool:
    return call.get("deadline", inf) > now and "gone" not in call


def reply(key: str, entries: list[dict]) -> None:
    """Pushes answers onto a reply list. Only logs when the broker is gone: the client's connection went with it."""
    try:
        with broker().pipeline(transaction=False) as pipe:
            pipe.rpush(key, msgpack.packb(entries))
            pipe.expire(key, REPLY_SECONDS)
            pipe.execute()
    except RedisError as error:
        log.warning("calls.reply_lost", calls=len(entries), error=type(error).__name__)


@lru_cache
def broker() -> Redis:
    """The broker connections of this process."""
    return Redis.from_url(settings().redis_url, socket_timeout=10, retry=Retry(ExponentialBackoff(1, 0.05), 3))


class Current:
    """The lane of this process, once the host is loaded."""

    lane: Lane | None = None
    ready = threading.Event()

    @classmethod
    def use(cls, lane: Lane) -> None:
        cls.lane = lane
        cls.ready.set()


@celery.task(name=TASK)
def run_calls(payload: bytes) -> None:
    """Answers a micro-batch of calls: the cheap ones now, long ones later by another thread."""
    if Current.lane is None:
        Current.ready.wait()
    Current.lane.receive(payload)
