"""Rate limits: by key, or by address for requests without a valid key."""

import math
import time

import structlog
from limits import RateLimitItem, parse
from limits.aio.storage import MemoryStorage, RedisStorage, Storage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from redis.exceptions import RedisError

from app.core.errors import RateLimited

log = structlog.get_logger(__name__)


class Rates:
    """Counts in the broker, so that all web fronts share one count; without a broker in memory."""

    def __init__(self, rate: str, redis_url: str | None = None):
        self.limit: RateLimitItem = parse(rate)
        self.storage = _storage(redis_url)
        self.limiter = SlidingWindowCounterRateLimiter(self.storage)
        self.policy = f'"default";q={self.limit.amount};w={self.limit.get_expiry()}'

    async def take(self, who: str) -> dict[str, str]:
        """Counts one request. Returns the headers that say how many are left. Raises RateLimited."""
        try:
            allowed = await self.limiter.hit(self.limit, who)
            resets, remaining = await self.limiter.get_window_stats(self.limit, who)
        except (RedisError, OSError) as error:  # without a count nobody is refused
            log.warning("rates.uncounted", error=type(error).__name__)
            return {}
        seconds = max(1, math.ceil(resets - time.time()))
        if not allowed:
            raise RateLimited(f"More than {self.limit} requests were sent.", retry_after=seconds)
        return {"RateLimit-Policy": self.policy, "RateLimit": f'"default";r={max(0, remaining)};t={seconds}'}

    async def close(self) -> None:
        if isinstance(self.storage, RedisStorage):
            await self.storage.bridge.get_connection().aclose()


def _storage(redis_url: str | None) -> Storage:
    if redis_url is None:
        return MemoryStorage()
    url = redis_url.replace("unix://", "redis+unix://", 1)
    return RedisStorage(f"async+{url}", implementation="redispy", socket_timeout=2)
