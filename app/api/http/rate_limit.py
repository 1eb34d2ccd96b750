"""Rate limits: requests by key, or by address for requests without a valid key, and seconds of compute by key."""

import asyncio
import math
import time
from dataclasses import dataclass

import structlog
from limits import RateLimitItem, parse
from limits.aio.storage import MemoryStorage, RedisStorage, Storage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from redis.exceptions import RedisError

from app.core.errors import QuotaExceeded, RateLimited

WINDOW = 60
"""Seconds in which the compute of a key is limited; they begin with each minute of the clock."""
KEPT = 10_000
log = structlog.get_logger(__name__)


@dataclass
class Spent:
    """Seconds of compute of a key in a minute: of all fronts as the broker told last, and `reserved` by calls here."""

    minute: int
    seconds: float = 0.0
    reserved: float = 0.0
    unsent: float = 0.0
    sending: bool = False


class Rates:
    """Counts in the broker, so that all web fronts share one count; without a broker in memory.

    A count that cannot be kept refuses nobody.
    """

    def __init__(self, rate: str, redis_url: str | None = None, compute_seconds: float | None = None):
        self.limit: RateLimitItem = parse(rate)
        self.compute_seconds = compute_seconds
        self.storage = _storage(redis_url)
        self.limiter = SlidingWindowCounterRateLimiter(self.storage)
        self.policy = f'"requests";q={self.limit.amount};w={self.limit.get_expiry()}'
        if compute_seconds is not None:
            self.policy += f', "compute";q={compute_seconds:.0f};w={WINDOW}'
        self._spent: dict[str, Spent] = {}
        self._tasks: set[asyncio.Task] = set()

    async def take(self, who: str) -> dict[str, str]:
        """Counts one request. Returns the headers that say how many are left. Raises RateLimited."""
        try:
            allowed = await self.limiter.hit(self.limit, who)
            resets, remaining = await self.limiter.get_window_stats(self.limit, who)
        except (RedisError, OSError) as error:
            log.warning("rates.uncounted", error=type(error).__name__)
            return {}
        seconds = max(1, math.ceil(resets - time.time()))
        if not allowed:
            raise RateLimited(f"More than {self.limit} requests were sent.", retry_after=seconds)
        return {"RateLimit-Policy": self.policy, "RateLimit": f'"requests";r={max(0, remaining)};t={seconds}'}

    async def check(self, who: str) -> None:
        """Raises RateLimited when no request is left; counts nothing."""
        try:
            if await self.limiter.test(self.limit, who):
                return
            resets, _ = await self.limiter.get_window_stats(self.limit, who)
        except (RedisError, OSError):
            return
        seconds = max(1, math.ceil(resets - time.time()))
        raise RateLimited(f"More than {self.limit} requests were sent.", retry_after=seconds)

    async def requests_left(self, who: str) -> tuple[int, int] | None:
        """(requests left, seconds until there are more); None while they are not counted."""
        try:
            resets, remaining = await self.limiter.get_window_stats(self.limit, who)
        except (RedisError, OSError):
            return None
        return max(0, remaining), max(1, math.ceil(resets - time.time()))

    # ---- compute

    def reserve(self, who: str, price: float) -> None:
        """Before a call of `price` predicted seconds. Raises QuotaExceeded when it does not fit what is left.

        A call that costs more than a whole minute's seconds needs a minute in which nothing was spent.
        """
        if self.compute_seconds is None:
            return
        spent = self.spent(who)
        taken = spent.seconds + spent.reserved
        if taken and taken + min(price, self.compute_seconds) >= self.compute_seconds:
            left = max(0.0, self.compute_seconds - taken)
            needs = f"The call takes about {price:.1f} s of compute; " if price else ""
            raise QuotaExceeded(
                f"{needs}{left:.1f} of {self.compute_seconds:g} s of compute per minute are left to this API key.",
                remedy="Wait, ask for less, or make the request a job with 'Prefer: respond-async'.",
                retry_after=self.resets(),
            )
        spent.reserved += price

    def settle(self, who: str, price: float, seconds: float) -> str:
        """After a call that was reserved: counts its seconds. Returns the item of the header RateLimit."""
        if self.compute_seconds is None:
            return ""
        spent = self.spent(who)
        spent.reserved = max(0.0, spent.reserved - price)
        spent.seconds += seconds
        spent.unsent += seconds
        if not spent.sending:
            spent.sending = True
            task = asyncio.create_task(self._send(who, spent))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return self.compute_item(who)

    def compute_item(self, who: str) -> str:
        left = max(0.0, (self.compute_seconds or 0.0) - self.spent(who).seconds)
        return f'"compute";r={math.floor(left)};t={self.resets()}'

    def spent(self, who: str) -> Spent:
        """What a key has spent in this minute."""
        minute, spent = int(time.time() // WINDOW), self._spent.get(who)
        if spent is None or spent.minute != minute:
            if len(self._spent) >= KEPT:
                self._spent = {key: each for key, each in self._spent.items() if each.minute == minute}
            spent = self._spent[who] = Spent(minute, reserved=spent.reserved if spent else 0.0)
        return spent

    @staticmethod
    def resets() -> int:
        """Seconds until the next minute of the clock."""
        return math.ceil(WINDOW - time.time() % WINDOW)

    async def _send(self, who: str, spent: Spent) -> None:
        """Adds what was spent here to the count of all fronts, and learns that count."""
        try:
            while spent.unsent:
                seconds, spent.unsent = spent.unsent, 0.0
                milliseconds = await self.storage.incr(
                    f"compute/{who}/{spent.minute}", 2 * WINDOW, amount=math.ceil(seconds * 1000)
                )
                spent.seconds = milliseconds / 1000 + spent.unsent
        except (RedisError, OSError) as error:
            log.warning("rates.uncounted", error=type(error).__name__)
        finally:
            spent.sending = False

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if isinstance(self.storage, RedisStorage):
            await self.storage.bridge.get_connection().aclose()


def _storage(redis_url: str | None) -> Storage:
    if redis_url is None:
        return MemoryStorage()
    url = redis_url.replace("unix://", "redis+unix://", 1)
    return RedisStorage(f"async+{url}", implementation="redispy", socket_timeout=2)
