"""The connections of the web front: uvicorn's protocol with limits of headers, of waiting and of open connections."""

import json
from asyncio import TimerHandle, Transport
from collections.abc import Callable

import httptools
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.api.http.problems import problem
from app.core.errors import AnamorphError, HeadersTooLarge, InvalidRequest, Overloaded, RequestTimeout
from app.core.settings import settings

MAX_HEADERS = 128
MIN_RATE = 500
"""Bytes per second below which a body or an answer counts as stalled."""
WRITE_SECONDS = 60
LINGER_SECONDS = 2
"""How long the rest of a refused request is read, so that the client gets the answer and not a reset."""
RESERVED_DESCRIPTORS = 256
"""Descriptors kept for the database, the broker and files."""
SPARE = 64
"""Connections above the limit that are still answered, with 503 except /livez."""


class OpenConnections:
    """The open connections of a server by address.

    When one is too many, the oldest that waits for a request is closed: half-open ones never keep others out.
    """

    def __init__(self, most: int, most_per_address: int):
        self.most, self.most_per_address = min(most, _descriptors() - RESERVED_DESCRIPTORS), most_per_address
        self.total = 0
        self.count: dict[str, int] = {}
        self._waiting: dict[str, dict[Connection, None]] = {}

    def add(self, connection: "Connection") -> bool:
        """Whether there was room for it."""
        address, room = connection.address, True
        if self.count.get(address, 0) >= self.most_per_address:
            room = self._close_oldest(address)
        elif self.total >= self.most:
            room = bool(self._waiting) and self._close_oldest(max(self._waiting, key=lambda a: len(self._waiting[a])))
        self.total += 1
        self.count[address] = self.count.get(address, 0) + 1
        return room

    def remove(self, connection: "Connection") -> None:
        self.busy(connection)
        self.total -= 1
        self.count[connection.address] -= 1
        if not self.count[connection.address]:
            del self.count[connection.address]

    def wait(self, connection: "Connection") -> None:
        """The connection waits for a request or for its headers."""
        self._waiting.setdefault(connection.address, {})[connection] = None

    def busy(self, connection: "Connection") -> None:
        waiting = self._waiting.get(connection.address)
        if waiting is not None and waiting.pop(connection, True) is None and not waiting:
            del self._waiting[connection.address]

    def _close_oldest(self, address: str) -> bool:
        for connection in self._waiting.get(address, ()):
            if not connection.transport.get_write_buffer_size():
                connection.drop()
                return True
        return False


class Connection(HttpToolsProtocol):
    """One connection. `reading` is what it reads now: headers, body, or nothing."""

    transport: Transport

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        options = settings()
        if not hasattr(self.server_state, "open"):
            self.server_state.open = OpenConnections(options.max_connections, options.max_connections_per_address)
        self.open: OpenConnections = self.server_state.open
        self.address = self.client[0] if self.client else ""
        self.header_seconds, self.body_seconds = options.header_timeout_seconds, options.body_timeout_seconds
        self.max_header_bytes = options.max_header_bytes
        self.reading, self.refused, self.counted = "headers", False, True
        self.header_bytes = self.headers_count = self.pending_bytes = self.received = self.unsent = 0
        self.too_large: HeadersTooLarge | None = None
        self._timer: TimerHandle | None = None
        self._timed = ""
        self._write_timer: TimerHandle | None = None
        if not self.open.add(self):
            if self.open.total > self.open.most + SPARE:
                return self.drop()
            self.app = _only_liveness(self.app)
        self.open.wait(self)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        super().connection_lost(exc)

    def drop(self) -> None:
        """Closes the connection without an answer."""
        self._leave()
        self.transport.abort()

    def _leave(self) -> None:
        self._set_timer("")
        self.resume_writing()
        if self.counted:
            self.counted = False
            self.open.remove(self)

    # ---- what arrives

    def data_received(self, data: bytes) -> None:
        if self.refused:
            return
        self.received += len(data)
        was_reading = self.reading
        super().data_received(data)
        self.pending_bytes = self.pending_bytes + len(data) if was_reading == self.reading == "headers" else 0
        if self.pending_bytes > self.max_header_bytes and not self.refused:
            self.refuse(self._headers_too_large())
        if not self.refused:
            self._watch()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.reading, self.header_bytes, self.headers_count = "headers", 0, 0

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers_count += 1
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self.reading = "body"
        self.open.busy(self)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self.reading = ""
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.counted and not self.pipeline and not self.transport.is_closing():
            self.open.wait(self)

    def _count(self, size: int) -> None:
        self.header_bytes += size
        if self.header_bytes > self.max_header_bytes or self.headers_count > MAX_HEADERS:
            self.too_large = self._headers_too_large()
            raise httptools.HttpParserError("headers too large")

    def _headers_too_large(self) -> HeadersTooLarge:
        return HeadersTooLarge(
            f"The address and the headers of a request may have {self.max_header_bytes} bytes and {MAX_HEADERS} lines.",
            remedy="Send what is long in the body.",
        )

    # ---- time-outs

    def _watch(self) -> None:
        """Starts the time-out of what is read now, unless it runs."""
        if self._timed != self.reading:
            self._set_timer(self.reading)

    def _set_timer(self, reading: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timed, self._timer = reading, None
        if reading == "headers":
            self._timer = self.loop.call_later(self.header_seconds, self._late, "headers", self.header_seconds)
        elif reading == "body":
            self.received = 0
            self._timer = self.loop.call_later(self.body_seconds, self._check_body)

    def _check_body(self) -> None:
        held = self.flow.read_paused or self.cycle.waiting_for_100_continue  # by the application, not by the client
        if held or self.received >= MIN_RATE * self.body_seconds:
            self._set_timer("body")
        else:
            self._late("body", self.body_seconds)

    def _late(self, what: str, seconds: float) -> None:
        if what == "headers" and not self.received:
            return self.drop()
        self.refuse(RequestTimeout(f"The {what} of the request did not arrive within {seconds:g} s."))

    def pause_writing(self) -> None:
        super().pause_writing()
        self.unsent = self.transport.get_write_buffer_size()
        self._write_timer = self.loop.call_later(WRITE_SECONDS, self._check_writing)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _check_writing(self) -> None:
        if self.unsent - self.transport.get_write_buffer_size() < MIN_RATE * WRITE_SECONDS:
            return self.drop()
        self.pause_writing()

    # ---- answers without the application

    def send_400_response(self, msg: str) -> None:
        self.refuse(self.too_large or InvalidRequest("This is no valid HTTP request."), None if self.too_large else 400)

    def refuse(self, error: AnamorphError, status: int | None = None) -> None:
        """Answers with the error, then closes."""
        self.refused, status = True, status or error.status
        self._set_timer("")
        self.open.busy(self)
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started:
                return self.drop()
        body = json.dumps(error.problem() | {"status": status}).encode()
        headers = {"content-type": "application/problem+json", "content-length": len(body), "connection": "close"}
        lines = [f"{name}: {value}\r\n".encode() for name, value in headers.items()]
        lines += [name + b": " + value + b"\r\n" for name, value in self.server_state.default_headers]
        self.transport.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", body]))
        self.transport.write_eof()
        self._timer = self.loop.call_later(LINGER_SECONDS, self.drop)


def _only_liveness(app: ASGIApp) -> Callable[[Scope, Receive, Send], None]:
    """The application for a connection above the limit."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/livez":
            return await app(scope, receive, send)
        error = Overloaded("The service has its maximum of open connections.", retry_after=5)
        await problem(error, scope, {"Connection": "close"})(scope, receive, send)

    return answer


def _descriptors() -> int:
    """The descriptors that this process may open, after raising its limit to what the system allows."""
    try:
        import resource
    except ImportError:  # Windows
        return 1 << 16
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 1 << 16 if hard == resource.RLIM_INFINITY else min(hard, 1 << 16)
    if soft != resource.RLIM_INFINITY and soft < most:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
        except (ValueError, OSError):  # macOS has a lower limit of its own
            pass
    return 1 << 16 if soft == resource.RLIM_INFINITY else soft
