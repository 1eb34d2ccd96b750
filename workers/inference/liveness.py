"""Beside the lane: says over the broker that this worker lives, ends it when it hangs, hears of clients that left."""

import faulthandler
import os
import sys
import threading
from collections import deque

import msgpack
import structlog
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from app.core.calls.messages import GONE, LIVE, LIVE_SECONDS
from app.core.settings import settings
from workers.inference.lane import Current

BEAT_SECONDS = 1
HANG_SECONDS = 10
"""A computation this long past the deadlines of its calls, and past its last check, will never end."""
FROZEN_SECONDS = 60
"""The process ends when no thread of Python could run for this long: a computation keeps the interpreter's lock."""
HUNG = 70
"""Exit status."""
log = structlog.get_logger(__name__)


def connection() -> Redis:
    """A connection that gives up soon: the next beat tries again."""
    return Redis.from_url(settings().redis_url, socket_timeout=2, socket_connect_timeout=2, retry=Retry(NoBackoff(), 1))


class Pulse(threading.Thread):
    """Renews this worker's key at the broker each second, and ends the process if its computation hangs."""

    def __init__(self, worker: str, queues: list[str]):
        super().__init__(name="pulse", daemon=True)
        self.key, self.queues = f"{LIVE}{worker}", queues
        self.stopping = threading.Event()
        self.broker = connection()
        self.answers = True

    def stop(self) -> None:
        """Leaves long calls to the other workers."""
        self.stopping.set()
        if Current.lane is not None:
            Current.lane.stop()

    def run(self) -> None:
        while not self.stopping.is_set():
            faulthandler.dump_traceback_later(FROZEN_SECONDS, exit=True, file=sys.__stderr__)
            self.beat()
            self.stopping.wait(BEAT_SECONDS)
        faulthandler.cancel_dump_traceback_later()
        self._send(lambda: self.broker.delete(self.key))

    def beat(self) -> None:
        lane = Current.lane
        late = lane.overdue() if lane else 0.0
        state = {"queues": self.queues, "loaded": lane is not None, "late": late}
        state |= {"busy": lane.busy_seconds, "models": lane.host.models.digests} if lane else {}
        self._send(lambda: self.broker.set(self.key, msgpack.packb(state), ex=LIVE_SECONDS))
        if late > HANG_SECONDS:
            end_process(lane.turns.holder, late)

    def _send(self, command) -> None:
        try:
            command()
            self.answers = True
        except (RedisError, OSError) as error:
            if self.answers:  # once, not each second
                log.warning("pulse.unsent", error=type(error).__name__)
            self.answers = False


def end_process(turn, late: float) -> None:
    """Ends this process, so that whoever started it starts another. Its key stays until that one is there."""
    operations = sorted({call["operation"] for call in turn.calls}) if turn else []
    log.critical("lane.hangs", late_seconds=round(late), operations=operations)
    sys.stderr.flush()
    faulthandler.dump_traceback(file=sys.__stderr__)
    os._exit(HUNG)


class GoneListener(threading.Thread):
    """Drops the calls whose clients left, as the fronts say on the channel GONE."""

    def __init__(self):
        super().__init__(name="gone-listener", daemon=True)
        self.stopping = threading.Event()
        self.early: deque[dict] = deque(maxlen=1000)  # what came before the host was loaded

    def stop(self) -> None:
        self.stopping.set()

    def run(self) -> None:
        while not self.stopping.is_set():
            try:
                with connection().pubsub(ignore_subscribe_messages=True) as channel:
                    channel.subscribe(GONE)
                    while not self.stopping.is_set():
                        if message := channel.get_message(timeout=1.0):
                            self.hear(message["data"])
            except (RedisError, OSError):
                self.stopping.wait(0.5)
            except Exception:
                log.exception("gone.failed")
                self.stopping.wait(0.5)

    def hear(self, data: bytes) -> None:
        self.early.append(msgpack.unpackb(data))
        while Current.lane is not None and self.early:
            gone = self.early.popleft()
            Current.lane.forget(gone["reply_to"], gone["ids"])
