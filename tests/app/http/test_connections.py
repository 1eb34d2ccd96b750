"""The web front under fire, over real sockets: slow, half-open and oversized requests, too many connections."""

import contextlib
import json
import socket
import threading
import time

import pytest
import uvicorn

from app.cli.serve import SERVER
from app.core.store.database import migrate
from app.main import create_app
from tests.app.conftest import Lane, add_model
from tests.app.small_catalog import CATALOG

GET = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
HALF = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "
POST = (
    b"POST /v1/models/v/denoise HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\n"
)


class Front:
    """The web front with the options of `anamorph web`, on a free port."""

    def __init__(self):
        self.app = create_app(CATALOG, Lane())
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address = self.socket.getsockname()
        self.server = uvicorn.Server(uvicorn.Config(lambda: self.app, **SERVER))
        self.thread = threading.Thread(target=self.server.run, args=([self.socket],))
        self.sockets: list[socket.socket] = []

    def __enter__(self):
        self.thread.start()
        until(lambda: self.server.started)
        return self

    def __exit__(self, *_):
        for connection in self.sockets:
            connection.close()
        self.server.should_exit = True
        self.thread.join()
        self.socket.close()

    def connect(self, *sent: bytes) -> socket.socket:
        connection = socket.create_connection(self.address, timeout=60)
        self.sockets.append(connection)
        for data in sent:
            connection.sendall(data)
        return connection

    def ask(self, *sent: bytes) -> tuple[int, dict[str, str], bytes]:
        with self.connect(*sent) as connection:
            return answer(connection)

    @property
    def open(self) -> int:
        return len(self.server.server_state.connections)


def until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "It did not happen."
        time.sleep(0.01)


def answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body); status 0 for a connection that is closed without an answer."""
    data = b""
    while b"\r\n\r\n" not in data:
        try:
            more = connection.recv(65536)
        except ConnectionResetError:
            more = b""
        if not more:
            return 0, {}, data
        data += more
    head, body = data.split(b"\r\n\r\n", 1)
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        body += connection.recv(65536)
    return int(first.split()[1]), headers, body


def closed(connection: socket.socket) -> bool:
    """Whether the service has closed the connection without an answer."""
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


@pytest.fixture
def front(home):
    """A function that starts a front with the given settings."""
    with contextlib.ExitStack() as stack:

        def start(**options) -> Front:
            home(**options)
            migrate()
            add_model("v")
            return stack.enter_context(Front())

        yield start


def test_answers_name_no_server_and_are_for_this_origin_only(front):
    status, headers, _ = front().ask(GET)
    assert status == 200 and "server" not in headers
    assert headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize("first", [b"", GET], ids=["first request", "second request"])
def test_headers_that_trickle_are_late_all_the_same(front, first):
    with front(header_timeout_seconds=1).connect(first) as connection:
        if first:
            assert answer(connection)[0] == 200
        with contextlib.suppress(OSError):  # the service closes meanwhile
            for byte in HALF + b"x" * 2000:
                connection.sendall(bytes([byte]))
                time.sleep(0.05)
        status, headers, body = answer(connection)
    # the answer may be lost where the system resets a connection that is written to
    assert status == 0 or (status, json.loads(body)["code"], headers["connection"]) == (408, "request-timeout", "close")


def test_half_open_requests_are_answered_408_and_silent_connections_closed(front):
    service = front(header_timeout_seconds=0.3)
    silent, half = service.connect(), service.connect(HALF)
    assert (answer(silent)[0], answer(half)[0]) == (0, 408)
    until(lambda: not service.open)


def test_a_body_that_stalls_or_trickles_is_late(front):
    service = front(body_timeout_seconds=0.5)
    stalled, trickling = service.connect(POST, b"abc"), service.connect(POST)
    assert answer(stalled)[0] == 408
    with contextlib.suppress(OSError):
        for _ in range(40):
            trickling.sendall(b"x")
            time.sleep(0.05)
    until(lambda: not service.open)
    samples = [sample for metric in service.app.state.metrics.requests.collect() for sample in metric.samples]
    statuses = {sample.labels["status"] for sample in samples}
    assert statuses == {"499"}, "a slow client is no fault of the service"


def test_clients_that_leave_inside_a_body_are_no_fault_of_the_service(front, caplog):
    service = front()
    for _ in range(5):
        connection = service.connect(POST, b"abc")
        until(lambda: service.open)
        time.sleep(0.05)
        connection.close()
        until(lambda: not service.open)
    requests = service.app.state.metrics.requests
    until(lambda: {"499"} == {s.labels["status"] for metric in requests.collect() for s in metric.samples})
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_body_that_comes_slowly_but_steadily_is_read(front):
    service = front(body_timeout_seconds=1)
    head = POST.replace(b"1000", b"3000")
    with service.connect(head) as connection:
        for _ in range(30):
            connection.sendall(b"x" * 100)
            time.sleep(0.05)
        assert answer(connection)[0] == 422, "read to its end, and no image"


def test_headers_without_end_are_refused_before_they_are_read(front):
    service = front()
    big = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * (20 << 20)
    many = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"a: b\r\n" * 100_000
    long = b"GET /livez?" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    for sent in (big, many, long):
        before = time.process_time()
        with service.connect() as connection:
            with contextlib.suppress(OSError):
                connection.sendall(sent)
            status, _, body = answer(connection)
        assert status == 431 and json.loads(body)["code"] == "headers-too-large"
        assert time.process_time() - before < 2, "CPU of both ends"
    wide = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 50_000 + b"\r\n\r\n"
    assert service.ask(wide)[0] == 200


def test_what_is_no_http_is_a_problem_too(front):
    status, headers, body = front().ask(b"HELO\r\n\r\n")
    assert (status, headers["content-type"], json.loads(body)["status"]) == (400, "application/problem+json", 400)


def test_half_open_connections_give_way_to_new_ones(front):
    service = front(max_connections=8)
    half = [service.connect(HALF) for _ in range(30)]
    until(lambda: sum(closed(connection) for connection in half) == 22)
    assert service.open == 8
    assert service.ask(GET)[0] == 200


def test_above_the_limit_of_busy_connections_only_liveness_is_answered(front):
    service = front(max_connections_per_address=4)
    busy = [service.connect(POST) for _ in range(4)]
    until(lambda: len(service.server.server_state.tasks) == 4)
    assert service.ask(GET)[0] == 200
    status, headers, body = service.ask(GET.replace(b"livez", b"readyz"))
    assert (status, json.loads(body)["code"], headers["retry-after"]) == (503, "overloaded", "5")
    for connection in busy:
        connection.close()
    until(lambda: not service.open)
    assert service.ask(GET.replace(b"livez", b"readyz"))[0] == 200


def test_pipelined_requests_are_answered_in_order(front):
    connection, data = front().connect(GET.replace(b"livez", b"nowhere") + GET), b""
    while data.count(b"HTTP/1.1 ") < 2:
        data += connection.recv(65536)
    assert data.index(b"404 Not Found") < data.index(b"200 OK")
