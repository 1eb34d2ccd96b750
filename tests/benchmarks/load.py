"""A closed-loop HTTP load on loopback: keep-alive connections, each sending its next request at once."""

import asyncio
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Load:
    """What one run measured: answered requests per second, latencies in milliseconds, and other statuses than 2xx."""

    rate: float
    p50: float
    p99: float
    errors: int


class _Connection(asyncio.Protocol):
    """One request at a time; reads only what it must of the answer: the status and the length."""

    def __init__(self, requests: list[bytes], number: int, deadline: float, done: asyncio.Future):
        self.requests, self.number, self.deadline, self.done = requests, number, deadline, done
        self.latencies: list[float] = []
        self.errors, self.buffer, self.wanted = 0, b"", None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._send()

    def _send(self) -> None:
        self.number += 1
        self.started = time.perf_counter()
        self.transport.write(self.requests[self.number % len(self.requests)])

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if self.wanted is None:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self.buffer[:end].lower()
            length = head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0]
            self.wanted = end + 4 + int(length)
            self.errors += not head.startswith((b"http/1.1 2", b"http/1.0 2"))
        if len(self.buffer) >= self.wanted:
            self.buffer, self.wanted = self.buffer[self.wanted :], None
            self.latencies.append(time.perf_counter() - self.started)
            self._send() if time.perf_counter() < self.deadline else self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


async def drive(host: str, port: int, requests: list[bytes], concurrency: int, seconds: float) -> Load:
    """Load `requests` (whole HTTP/1.1 messages, taken in turn) for `seconds`."""
    loop = asyncio.get_running_loop()
    begun = time.perf_counter()
    connections = []
    for number in range(concurrency):
        done = loop.create_future()
        _, connection = await loop.create_connection(
            lambda n=number, d=done: _Connection(requests, n, begun + seconds, d), host, port
        )
        connections.append(connection)
    await asyncio.gather(*(connection.done for connection in connections))
    elapsed = time.perf_counter() - begun
    latencies = sorted(1e3 * latency for connection in connections for latency in connection.latencies)
    pick = lambda share: latencies[min(len(latencies) - 1, int(share * len(latencies)))]  # noqa: E731
    errors = sum(connection.errors for connection in connections)
    return Load(len(latencies) / elapsed, pick(0.5), pick(0.99), errors)


def request(method: str, path: str, body: bytes = b"", media: str = "image/png") -> bytes:
    """One HTTP/1.1 message."""
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
