"""Authentication and authorisation: API keys, scopes, cross-site requests, rate limits, the compute of calls."""

import asyncio
import hashlib
import math
import time
from functools import lru_cache
from typing import Annotated
from urllib.parse import urlsplit

from anyio.to_thread import run_sync
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.api.http.rate_limit import Rates
from app.core.calls.client import Answer, Call
from app.core.errors import ClientGone, CrossSite, DeadlineExceeded, Forbidden, Unauthorized
from app.core.settings import settings
from app.core.store import keys
from app.core.store.database import reading, transaction
from app.core.store.keys import LOCAL_PRINCIPAL, Principal

CACHE_SECONDS = 5
"""Maximum time that a key works after it was revoked."""
CACHE_SIZE = 1000
TOUCH_SECONDS = 60
"""Minimum time between two updates of the time at which a key was last used."""
WATCH_SECONDS = 0.2
"""A call that waits this long is watched for its client to leave."""
SAFE_METHODS = ("GET", "HEAD")
SAME_SITE = (None, "same-origin", "none")
bearer = HTTPBearer(
    auto_error=False, description="An API key, `an_...`. Not needed where the service runs on loopback without keys."
)


class Authenticator:
    """One per app. Looks keys up in the database and caches the result for a few seconds."""

    def __init__(self, rates: Rates | None):
        self.rates = rates
        self._cache: dict[str, tuple[float, Principal | None]] = {}

    async def authenticate(self, request: Request, token: str | None) -> Principal:
        """The principal of a request. Raises Unauthorized, Forbidden or RateLimited."""
        if token is None and not settings().require_keys:
            self._refuse_cross_site(request)
            return LOCAL_PRINCIPAL
        client = request.client.host if request.client else "unknown"
        principal = await self._find(token, client) if token else None
        if self.rates:
            who = principal.key_id if principal else client
            request.scope["rate_headers"] = headers = await self.rates.take(who)
            request.scope["rate_key"] = who
            if principal and headers and self.rates.compute_seconds is not None:
                headers["RateLimit"] += f", {self.rates.compute_item(who)}"
        if principal is None:
            raise Unauthorized(
                "The API key is unknown, expired or revoked." if token else "The request has no API key.",
                remedy="Send 'Authorization: Bearer an_...'; an administrator makes keys with `anamorph keys create`.",
            )
        return principal

    async def _find(self, token: str, client: str) -> Principal | None:
        """The principal of a key. Who has sent too many unknown ones is refused before another look-up."""
        expires, principal = self._cache.get(token, (0.0, None))
        now = time.monotonic()
        if expires < now:
            if self.rates and principal is None:
                await self.rates.check(client)
            principal = keys.bootstrap(token) or await run_sync(self._look_up, token)
            if len(self._cache) >= CACHE_SIZE:
                known = {key: entry for key, entry in self._cache.items() if entry[1] and entry[0] > now}
                self._cache = known if len(known) < CACHE_SIZE else {}
            self._cache[token] = (now + CACHE_SECONDS, principal)
        return principal

    async def close(self) -> None:
        if self.rates:
            await self.rates.close()

    def forget(self) -> None:
        """Empties the cache, after a key was changed."""
        self._cache.clear()

    @staticmethod
    def _look_up(token: str) -> Principal | None:
        with reading() as conn:
            principal = keys.find(conn, token)
            stale = principal and principal.key_id and keys.unused_for(conn, principal.key_id) > TOUCH_SECONDS
        if stale:
            with transaction(durable=False) as conn:
                keys.touch(conn, principal.key_id)
        return principal

    @staticmethod
    def _refuse_cross_site(request: Request) -> None:
        """Without keys, a page of another site must not be able to act in the name of the user of this browser.

        It may link to an address, but not show its picture in the page: that would start a computation.
        """
        headers = request.headers
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        foreign = origin is not None and urlsplit(origin).netloc != headers.get("host")
        if not foreign and site in SAME_SITE:
            return
        if origin in settings().allowed_origins:
            return
        if request.method in SAFE_METHODS and not foreign and headers.get("sec-fetch-dest") == "document":
            return
        raise CrossSite(
            "Cross-site request refused: the request comes from a page of another site.",
            remedy="Send it from a page of this service or from a program that is no browser, or add the origin of "
            "the page to ANAMORPH_ALLOWED_ORIGINS.",
        )


async def submit(request: Request, call: Call) -> Answer:
    """The answer to a call, whose compute is charged to the key of the request. Raises QuotaExceeded."""
    rates, who = request.app.state.authenticator.rates, request.scope.get("rate_key")
    if rates is None or who is None:
        return await _answer(request, call)
    price, start = call.price, time.monotonic()
    rates.reserve(who, price)
    seconds = 0.0
    try:
        answer = await _answer(request, call)
        together = sum(answer.timings.get(stage, 0.0) for stage in ("compute", "encode"))
        seconds = (answer.timings.get("decode", 0.0) + answer.share * together) / 1000
        return answer
    except (ClientGone, DeadlineExceeded, asyncio.CancelledError):  # a worker was busy with it all the same
        seconds = min(time.monotonic() - start, price or math.inf)
        raise
    finally:
        item, headers = rates.settle(who, price, seconds), request.scope.get("rate_headers") or {}
        if item and headers:
            headers["RateLimit"] = ", ".join([headers["RateLimit"].split(", ")[0], item])


async def _answer(request: Request, call: Call) -> Answer:
    """The answer of a worker; ClientGone once the client has left. Most calls are answered before that is watched."""
    call.tenant, watches = tenant_digest(request.scope.get("tenant", "")), []
    timer = asyncio.get_running_loop().call_later(WATCH_SECONDS, _watch, request, call, watches)
    try:
        return await request.app.state.calls.submit(call)
    finally:
        timer.cancel()
        for watch in watches:
            watch.cancel()


def _watch(request: Request, call: Call, watches: list[asyncio.Task]) -> None:
    async def until_left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        request.app.state.calls.abandon(call)

    watches.append(asyncio.create_task(until_left()))


@lru_cache(4096)
def tenant_digest(tenant: str) -> str:
    return hashlib.sha256(tenant.encode()).hexdigest()[:12]


async def principal(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
) -> Principal:
    # a key under another scheme than Bearer is passed on and found to be unknown
    token = credentials.credentials if credentials else request.headers.get("authorization")
    found = await request.app.state.authenticator.authenticate(request, token)
    request.scope["tenant"] = found.tenant
    return found


def require_scope(*scopes: str):
    """A dependency: the principal. Raises Forbidden for a key with none of the scopes."""

    async def allowed(principal: Annotated[Principal, Depends(principal)]) -> Principal:
        if principal.scopes.isdisjoint(scopes):
            words = " or ".join(scopes)
            raise Forbidden(f"The API key lacks the scope {words}.", remedy="Use a key that has it.", scope=scopes[0])
        return principal

    return allowed


Anyone = Annotated[Principal, Depends(principal)]
Reader = Annotated[Principal, Depends(require_scope("read"))]
Writer = Annotated[Principal, Depends(require_scope("write"))]
Watcher = Annotated[Principal, Depends(require_scope("read", "write"))]
"""Who starts jobs may follow them."""
KeyAdmin = Annotated[Principal, Depends(require_scope("tenant-admin", "admin"))]
Admin = Annotated[Principal, Depends(require_scope("admin"))]
