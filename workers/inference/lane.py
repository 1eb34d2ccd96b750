"""Entry point of inference: a micro-batch of waiting calls."""

import time
from functools import lru_cache

import msgpack
import structlog
from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from app.core.settings import settings
from workers.inference import host

REPLY_SECONDS = 60
"""A reply nobody fetches, because its front end is gone, disappears after so long."""
log = structlog.get_logger(__name__)


def run_batch(payload: bytes) -> None:
    """Answers one micro-batch on the reply list it names. Calls past their deadline are dropped: nobody waits."""
    message = msgpack.unpackb(payload)
    now = time.time()
    calls = [call for call in message["calls"] if not 0 < call["deadline"] < now]
    if dropped := len(message["calls"]) - len(calls):
        log.info("calls.late", dropped=dropped)
    if calls:
        outcomes = host.execute(calls)
        reply(message["reply_to"], [{"id": call["id"]} | out for call, out in zip(calls, outcomes, strict=True)])


def reply(key: str, entries: list[dict]) -> None:
    """Pushes the answers; a broker that is gone takes the waiting front end's connection with it, so this only logs."""
    try:
        with broker().pipeline(transaction=False) as pipe:
            pipe.rpush(key, msgpack.packb(entries))
            pipe.expire(key, REPLY_SECONDS)
            pipe.execute()
    except RedisError as error:
        log.warning("calls.reply_lost", calls=len(entries), error=type(error).__name__)


@lru_cache
def broker() -> Redis:
    """This process's connections to the broker."""
    return Redis.from_url(settings().redis_url, socket_timeout=10, retry=Retry(ExponentialBackoff(1, 0.05), 3))
