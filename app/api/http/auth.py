"""Authentication and authorisation: API keys, scopes, cross-site requests, rate limits."""

import time
from typing import Annotated
from urllib.parse import urlsplit

from anyio.to_thread import run_sync
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.api.http.rate_limit import Rates
from app.core.errors import CrossSite, Forbidden, Unauthorized
from app.core.settings import settings
from app.core.store import keys
from app.core.store.database import reading, transaction
from app.core.store.keys import LOCAL_PRINCIPAL, Principal

CACHE_SECONDS = 5
"""Maximum time that a key works after it was revoked."""
TOUCH_SECONDS = 60
"""Minimum time between two updates of the time at which a key was last used."""
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
        principal = await self._find(token) if token else None
        if self.rates:
            client = request.client.host if request.client else "unknown"
            request.scope["rate_headers"] = await self.rates.take(principal.key_id if principal else client)
        if principal is None:
            raise Unauthorized(
                "The API key is unknown, expired or revoked." if token else "The request has no API key.",
                remedy="Send 'Authorization: Bearer an_...'; an administrator makes keys with `anamorph keys create`.",
            )
        return principal

    async def _find(self, token: str) -> Principal | None:
        expires, principal = self._cache.get(token, (0.0, None))
        if expires < time.monotonic():
            principal = keys.bootstrap(token) or await run_sync(self._look_up, token)
            if len(self._cache) >= 1000:
                self._cache.clear()
            self._cache[token] = (time.monotonic() + CACHE_SECONDS, principal)
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


async def principal(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
) -> Principal:
    # a key under another scheme than Bearer is passed on and found to be unknown
    token = credentials.credentials if credentials else request.headers.get("authorization")
    return await request.app.state.authenticator.authenticate(request, token)


def require_scope(scope: str):
    """A dependency: the principal. Raises Forbidden for a key without the scope."""

    async def allowed(principal: Annotated[Principal, Depends(principal)]) -> Principal:
        if scope not in principal.scopes:
            raise Forbidden(f"The API key lacks the scope {scope}.", remedy="Use a key that has it.", scope=scope)
        return principal

    return allowed


Reader = Annotated[Principal, Depends(require_scope("read"))]
Writer = Annotated[Principal, Depends(require_scope("write"))]
Admin = Annotated[Principal, Depends(require_scope("admin"))]
