"""What happens to every request before and after the routes: ids, limits, HEAD, safe headers. Plain ASGI."""

import re
import uuid
from collections.abc import Callable
from time import perf_counter
from urllib.parse import urlsplit

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.http.problems import problem
from app.core.errors import Forbidden, TooLarge

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
SAFE = {"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer"}
QUIET = ("/livez", "/readyz", "/metrics")
log = structlog.get_logger("access")


class Observed:
    """Gives the request an id, which its log lines and its answer carry, and measures it."""

    def __init__(self, app: ASGIApp, observe: Callable[[str, str, int, float], None]):
        self.app, self.observe = app, observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = Headers(scope=scope).get("x-request-id", "")
        scope["request_id"] = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        method, start, status = "HEAD" if scope.get("head") else scope["method"], perf_counter(), 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.update(SAFE | scope.get("rate_headers", {}) | {"X-Request-ID": scope["request_id"]})
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=scope["request_id"]):
            try:
                await self.app(scope, receive, answer)
            finally:
                seconds = perf_counter() - start
                self.observe(method, getattr(scope.get("route"), "path", "none"), status, seconds)
                if scope["path"] not in QUIET:
                    log.debug("request", method=method, path=scope["path"], status=status, ms=round(seconds * 1000, 1))


class Heads:
    """HEAD is GET without the body; routes see GET, and `scope["head"]` where computing a body is dear."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self.app(scope, receive, send)
        # a copy: the server looks at its own scope to know that a HEAD answer has no body
        inner = {**scope, "method": "GET", "head": True}

        async def bare(message: Message) -> None:
            await send(message | {"body": b""} if message["type"] == "http.response.body" else message)

        await self.app(inner, receive, bare)


class BodyLimit:
    """No body grows beyond `largest(scope)` bytes: by its Content-Length, or while it streams in."""

    def __init__(self, app: ASGIApp, largest: Callable[[Scope], int]):
        self.app, self.largest = app, largest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        limit, seen = self.largest(scope), 0
        length = Headers(scope=scope).get("content-length", "0")
        if len(length) >= 20 or (length.isdecimal() and int(length) > limit):
            error = TooLarge(f"The body may have {limit} bytes here.")
            return await problem(error, scope, {"Connection": "close"})(scope, receive, send)

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise HTTPException(413)
            return message

        await self.app(scope, counted, send)


class KnownHosts:
    """Refuses requests for other hosts: a web page must not reach a local service under a name of its own."""

    def __init__(self, app: ASGIApp, hosts: list[str]):
        self.app, self.hosts = app, {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._known(Headers(scope=scope).get("host", "")):
            return await self.app(scope, receive, send)
        remedy = "Use one of the names in ANAMORPH_ALLOWED_HOSTS, or add this one."
        await problem(Forbidden("The service does not answer for this Host.", remedy=remedy), scope)(
            scope, receive, send
        )

    def _known(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        parents = (f"*.{name.split('.', count)[-1]}" for count in range(1, name.count(".") + 1))
        return "*" in self.hosts or name in self.hosts or any(parent in self.hosts for parent in parents)
