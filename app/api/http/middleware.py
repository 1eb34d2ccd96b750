"""ASGI middleware around the routes: request ids, logs, HEAD, hosts, limits of bodies, security headers."""

import math
import re
import uuid
from collections import Counter
from collections.abc import Callable
from functools import partial
from time import perf_counter
from urllib.parse import urlsplit

import structlog
from prometheus_client import Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.http.problems import problem
from app.core.catalog.describe import quoted
from app.core.errors import CrossSite, Overloaded, TooLarge
from app.core.settings import settings

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
SAFE = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
SENT_HEADERS = (
    *("Accept", "Authorization", "Content-Type", "Idempotency-Key", "If-None-Match", "Last-Event-ID", "Prefer"),
    *("Range", "X-Request-ID"),
)
"""Headers that pages of allowed origins may send."""
READ_HEADERS = (
    *("Content-Disposition", "Content-Location", "ETag", "Idempotency-Replayed", "Location", "Preference-Applied"),
    *("RateLimit", "RateLimit-Policy", "Retry-After", "Server-Timing", "X-Model-Digest", "X-Request-ID", "X-Seed"),
    *("X-Export-Part", "X-Export-Difference"),
)
"""Headers of answers that they may read."""
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE")
NOT_LOGGED = ("/livez", "/readyz", "/metrics")
CLIENT_GONE = 499
"""Status in logs and metrics of a request whose client left before it was read."""
CARD_BYTES = 8 << 20
"""Maximum size of the card of an imported model."""
CALL_PATH = re.compile(r"/v1/models/[^/]+/[a-z-]+")
FIRST_RATE, BUSY, RATE_SECONDS = 200.0, 32, 0.25
"""Calls per second before they are measured; calls that are never too many; seconds of a measurement."""
log = structlog.get_logger("access")


class RequestLog:
    """Gives each request an id, for its log lines and its answer, and measures how long the answer takes."""

    def __init__(self, app: ASGIApp, seconds: Histogram):
        self.app, self.seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        sent_id = Headers(scope=scope).get("x-request-id", "")
        scope["request_id"] = sent_id if REQUEST_ID.fullmatch(sent_id) else uuid.uuid4().hex
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
            except ClientDisconnect:  # nobody reads an answer
                status = CLIENT_GONE
            finally:
                seconds = perf_counter() - start
                label, route = method if method in METHODS else "other", getattr(scope.get("route"), "path", "none")
                self.seconds.labels(label, route, str(status)).observe(seconds)
                if scope["path"] not in NOT_LOGGED:
                    log.debug("request", method=method, path=scope["path"], status=status, ms=round(seconds * 1000, 1))


class Admission:
    """Refuses calls by their predicted wait once their headers are read: no body is read or decoded for nothing.

    Counts the calls in this front, wherever they wait. How many are answered per second is measured while many are
    here. One client (key or address) holds at most three quarters of the places. Slow calls leave early: they have a
    queue of their own.
    """

    def __init__(self, app: ASGIApp, seconds: float):
        self.app, self.seconds = app, seconds
        self.here: Counter[str] = Counter()
        self.total, self.rate = 0, FIRST_RATE
        self._began, self._answered, self._least = perf_counter(), 0, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not CALL_PATH.fullmatch(scope["path"]):
            return await self.app(scope, receive, send)
        client = Headers(scope=scope).get("authorization") or (scope.get("client") or ("",))[0]
        most = max(BUSY, self.rate * self.seconds)
        if self.total >= most or self.here[client] >= max(BUSY, 0.75 * most):
            wait = math.ceil(self.total / self.rate)
            error = Overloaded(
                f"{self.total} calls are waiting already, for about {wait} s.", retry_after=min(60, wait)
            )
            return await problem(error, scope)(scope, receive, send)
        self.total += 1
        self.here[client] += 1
        scope["leave_admission"] = leave = _once(partial(self._leave, client))
        try:
            await self.app(scope, receive, send)
        finally:
            leave()

    def _leave(self, client: str) -> None:
        self.total -= 1
        self.here[client] -= 1
        if not self.here[client]:
            del self.here[client]
        self._answered, self._least, now = self._answered + 1, min(self._least, self.total), perf_counter()
        if now - self._began >= RATE_SECONDS:
            if self._least >= BUSY // 2:
                self.rate += 0.3 * (self._answered / (now - self._began) - self.rate)
            self._began, self._answered, self._least = now, 0, self.total


def _once(function: Callable[[], None]) -> Callable[[], None]:
    left = [function]
    return lambda: left.pop()() if left else None


class HeadRequests:
    """Answers HEAD as GET without the body. Routes see GET, and `scope["head"]` where a body is slow to compute."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self.app(scope, receive, send)
        # a copy: the server reads its own scope to know that the answer has no body
        inner = {**scope, "method": "GET", "head": True}

        async def bare(message: Message) -> None:
            await send(message | {"body": b""} if message["type"] == "http.response.body" else message)

        await self.app(inner, receive, bare)


class AllowedOrigins(CORSMiddleware):
    """Lets pages of the origins in ANAMORPH_ALLOWED_ORIGINS use the service: CORS with API keys, without cookies."""

    def __init__(self, app: ASGIApp, origins: list[str]):
        super().__init__(app, origins, METHODS, SENT_HEADERS, allow_private_network=True, expose_headers=READ_HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else {}
        origin = headers.get("origin", "")
        if "access-control-request-method" in headers and scope["method"] == "OPTIONS" and origin:
            response = self.preflight_response(headers)
            if response.status_code != 200:
                error = CrossSite(
                    f"Pages of the origin {quoted(origin)} may not send this request: "
                    f"{response.body.decode().removeprefix('Disallowed CORS ')} not allowed.",
                    remedy="Add the origin to ANAMORPH_ALLOWED_ORIGINS.",
                )
                response = problem(error, scope, {"Vary": "Origin"})
            return await response(scope, receive, send)
        await (super().__call__ if self.allow_origins else self.app)(scope, receive, send)


class BodyLimit:
    """Refuses bodies above the limit of their path, by Content-Length or while they arrive."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        limit, size = max_body_bytes(scope), 0
        length = Headers(scope=scope).get("content-length", "0")
        if len(length) >= 20 or (length.isdecimal() and int(length) > limit):
            error = TooLarge(f"The body has more than {limit} bytes, the maximum for this path.")
            return await problem(error, scope, {"Connection": "close"})(scope, receive, send)

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > limit:
                raise HTTPException(413)
            return message

        await self.app(scope, counted, send)


def max_body_bytes(scope: Scope) -> int:
    """The limit of a request: uploads of datasets and models have their own, all others that of JSON bodies."""
    path, method = scope["path"], scope["method"]
    if method == "POST" and path == "/v1/datasets":
        return settings().max_body_bytes
    if method == "PUT" and path.startswith("/v1/models/"):
        return settings().max_model_bytes + CARD_BYTES + (1 << 16)
    return settings().max_json_bytes


class TrustedHosts:
    """Refuses requests for other hosts, so that a web page cannot reach a local service by DNS rebinding."""

    def __init__(self, app: ASGIApp, hosts: list[str]):
        self.app, self.hosts = app, {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._known(Headers(scope=scope).get("host", "")):
            return await self.app(scope, receive, send)
        error = CrossSite(
            "The service does not answer for the host in the header Host.",
            remedy="Use one of the names in ANAMORPH_ALLOWED_HOSTS, or add this one to the list.",
        )
        await problem(error, scope)(scope, receive, send)

    def _known(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        parents = (f"*.{name.split('.', count)[-1]}" for count in range(1, name.count(".") + 1))
        return "*" in self.hosts or name in self.hosts or any(parent in self.hosts for parent in parents)
