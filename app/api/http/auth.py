"""Who asks, and whether they may: API keys, scopes, cross-site requests, rates."""

import time
from typing import Annotated
from urllib.parse import urlsplit

from anyio.to_thread import run_sync
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.api.http.rate_limit import Rates
from app.core.errors import Forbidden, Unauthorized
from app.core.settings import settings
from app.core.store import keys
from app.core.store.database import reading, transaction
from app.core.store.keys import LOCAL_PRINCIPAL, Principal

REMEMBERED_SECONDS = 5
"""How long a key may still work after it was revoked."""
USED_SECONDS = 60
READING = ("GET", "HEAD")
SAME_SITE = (None, "same-origin", "none")
bearer = HTTPBearer(
    auto_error=False, description="`an_...`; not needed where the service runs on loopback without keys."
)


class Doorman:
    """One per app: checks keys against the database and remembers the answer for a few seconds."""

    def __init__(self, rates: Rates | None):
        self.rates = rates
        self._known: dict[str, tuple[float, Principal | None]] = {}

    async def admit(self, request: Request, token: str | None) -> Principal:
        if token is None and not settings().require_keys:
            self._refuse_cross_site(request)
            return LOCAL_PRINCIPAL
        found = await self._find(token) if token else None
        if self.rates:
            client = request.client.host if request.client else "unknown"
            request.scope["rate_headers"] = await self.rates.take(found.key_id if found else client)
        if found is None:
            remedy = "Send 'Authorization: Bearer an_...'; an administrator makes keys with `anamorph keys create`."
            what = "This API key is not valid, or not any more." if token else "A request needs an API key here."
            raise Unauthorized(what, remedy=remedy)
        return found

    async def _find(self, token: str) -> Principal | None:
        until, found = self._known.get(token, (0.0, None))
        if until < time.monotonic():
            found = keys.bootstrap(token) or await run_sync(self._look_up, token)
            if len(self._known) >= 1000:
                self._known.clear()
            self._known[token] = (time.monotonic() + REMEMBERED_SECONDS, found)
        return found

    async def close(self) -> None:
        if self.rates:
            await self.rates.close()

    def forget(self) -> None:
        """A key changed here: the next request looks again."""
        self._known.clear()

    @staticmethod
    def _look_up(token: str) -> Principal | None:
        with reading() as conn:
            found = keys.find(conn, token)
            stale = found and found.key_id and keys.unused_for(conn, found.key_id) > USED_SECONDS
        if stale:
            with transaction(durable=False) as conn:
                keys.touch(conn, found.key_id)
        return found

    @staticmethod
    def _refuse_cross_site(request: Request) -> None:
        """Without a key, a page of another site must not be able to make this browser's user act."""
        if request.method in READING:
            return
        origin = request.headers.get("origin")
        foreign = origin is not None and urlsplit(origin).netloc != request.headers.get("host")
        if foreign or request.headers.get("sec-fetch-site") not in SAME_SITE:
            raise Forbidden(
                "Pages of other sites may not do this.", remedy="Use an API key, or a page of this service."
            )


async def principal(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
) -> Principal:
    given = request.headers.get("authorization")
    token = credentials.credentials if credentials else given  # another scheme is no valid key either
    return await request.app.state.doorman.admit(request, token)


def needing(scope: str):
    """A dependency: the principal, if its key has the scope."""

    async def allowed(principal: Annotated[Principal, Depends(principal)]) -> Principal:
        if scope not in principal.scopes:
            raise Forbidden(f"This needs the scope {scope}.", remedy="Use a key that has it.", scope=scope)
        return principal

    return allowed


Reader = Annotated[Principal, Depends(needing("read"))]
Writer = Annotated[Principal, Depends(needing("write"))]
Admin = Annotated[Principal, Depends(needing("admin"))]
