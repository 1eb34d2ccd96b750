"""What one client can do to another: `python -m tests.benchmarks.neighbours [--only NAME ...] [--list]`.

Starts a whole service in a temporary folder, then runs hostile recipes one after the other while a neighbour asks for
one sample of another model all the time. Prints for each recipe the statuses of the guilty requests and the median,
99th percentile and maximum of the neighbour's waiting time; then the peak memory of each process and the statuses of
5xx that the service counted. Exits with 1 if a neighbour failed, its p99 was above a second, or a 5xx other than 503
and 504 was counted.
"""

import argparse
import io
import json
import re
import socket
import statistics
import struct
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import psutil
from PIL import Image

from app.cli.client import Client
from tests.system.conftest import ready_service, start_service
from tests.system.processes import end
from tests.workers.codecs.test_codecs import raw_png
from tests.workers.codecs.test_costs import solid_webp, with_scans
from tests.workers.onnx import graphs

LIMIT_SECONDS = 1.0
NEIGHBOUR, VICTIM, CLASSIFIER, BLACK_BOX, HUGE = "neighbour", "victim", "classifier", "endless-image", "huge-image"
SMALL = {"images": 320, "batch_size": 32}
MODELS = {NEIGHBOUR: "vae", VICTIM: "autoencoder", CLASSIFIER: "classifier"}
RAW = {"Content-Type": "image/png"}
RAW_LINES = ("Content-Type: image/png",)


def png(value: int = 90, side: int = 8) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((side, side), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def noise_photo(side: int = 4000) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((side, side), 40).convert("RGB").save(file, "JPEG", quality=85)
    return file.getvalue()


def marker_flood(count: int = 4_000_000) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((16, 16), 50).convert("RGB").save(file, "JPEG")
    return file.getvalue()[:2] + b"\xff\xfe\0\2" * count + file.getvalue()[2:]


def deep_png(side: int = 4000) -> bytes:
    return raw_png(side, side, 16, 6, (b"\4" + bytes(8 * side)) * side)


def exif_bomb() -> bytes:
    """A PNG whose EXIF block names the same nine megabytes 60,000 times."""
    entries = b"".join(struct.pack(">HHII", tag, 2, 9_000_000, 8) for tag in range(60_000))
    exif = b"MM\0*" + struct.pack(">IH", 8, 60_000) + entries + bytes(9_500_000)
    chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
    return raw_png(8, 8, 8, 2, (b"\0" + bytes(24)) * 8, chunk)


class Guilty:
    """The requests of the hostile client."""

    def __init__(self, url: str):
        self.url = url
        self.host, self.port = re.match(r"http://([^:/]+):(\d+)", url).groups()

    def post(self, path: str, **options) -> str:
        with httpx.Client(base_url=self.url, timeout=180) as client:
            try:
                answer = client.post(path, **options)
            except httpx.HTTPError as error:
                return type(error).__name__
        problem = "json" in answer.headers.get("content-type", "") and answer.json().get("code")
        return f"{answer.status_code} {problem}" if problem else str(answer.status_code)

    def images(self, data: bytes, count: int = 1, clients: int = 1, **headers: str) -> list[str]:
        """`count` images in one request to a small autoencoder, by several clients at once."""
        path = f"/v1/models/{VICTIM}/reconstruct?resize=true"
        if count == 1:
            send = lambda _: self.post(path, content=data, headers=RAW | headers)  # noqa: E731
        else:
            files = [("image", (f"{number}.png", data)) for number in range(count)]
            send = lambda _: self.post(path, files=files, headers=headers)  # noqa: E731
        with ThreadPoolExecutor(clients) as pool:
            return list(pool.map(send, range(clients)))

    def attack(self, query: str, value: int = 90) -> list[str]:
        return [self.post(f"/v1/models/{CLASSIFIER}/attack?{query}", content=png(value), headers=RAW)]

    def classify(self, model: str, value: int) -> str:
        return self.post(f"/v1/models/{model}/classify", content=png(value), headers=RAW)

    def endless_call(self, model: str = BLACK_BOX) -> list[str]:
        """A call whose graph does not end, or is too large; then how long the next call of the same model takes."""
        first = self.classify(model, 255)
        start = time.perf_counter()
        return [first, f"next {self.classify(model, 90)} after {time.perf_counter() - start:.2f} s"]

    def leave(self, count: int = 30) -> list[str]:
        """Long attacks whose client goes away at once; then one live call."""
        path = f"/v1/models/{CLASSIFIER}/attack?method=pgd&steps=2000&stop_early=false"
        lines = (f"POST {path} HTTP/1.1", f"Host: {self.host}", *RAW_LINES, f"Content-Length: {len(png())}", "", "")
        for _ in range(count):
            connection = socket.create_connection((self.host, int(self.port)))
            connection.sendall("\r\n".join(lines).encode() + png())
            time.sleep(0.02)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
        start = time.perf_counter()
        return [f"live call {self.classify(CLASSIFIER, 90)} after {time.perf_counter() - start:.2f} s"]

    def raw(self, message: bytes, count: int = 1, wait: float = 15) -> list[str]:
        """The first line of the answer to bytes that are no whole request, from `count` connections."""
        opened = [socket.create_connection((self.host, int(self.port))) for _ in range(count)]
        lines: Counter[str] = Counter()
        for connection in opened:
            with suppress(OSError):
                connection.sendall(message)
        for connection in opened:
            connection.settimeout(wait)
            try:
                lines[connection.recv(100).split(b"\r\n")[0].decode() or "closed"] += 1
            except OSError as error:
                lines[type(error).__name__] += 1
            connection.close()
        return [f"{number} x {line}" for line, number in lines.items()]

    def importing(self, content: bytes) -> list[str]:
        """An ONNX file that is imported; how its job ends."""
        with Client(self.url) as client:
            job = send_onnx(client, "guilty", content)
            *_, job = client.follow(job["id"])
        error = job.get("error") or {}
        return [f"{job.get('status')} {error.get('status', '')} {error.get('code', '')}"]


def recipes(guilty: Guilty) -> dict[str, Callable[[], list[str]]]:
    long_header = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 20_000_000 + b"\r\n\r\n"
    many_headers = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 100_000 + b"\r\n"
    return {
        "nothing": lambda: [time.sleep(8) or "-"],
        "one solid WebP": lambda: guilty.images(solid_webp()),
        "256 solid WebP": lambda: guilty.images(solid_webp(), 256),
        "7 solid WebP, 4 clients": lambda: guilty.images(solid_webp(), 7, 4),
        "190 PNG of 16 bits": lambda: guilty.images(deep_png(), 190),
        "2 PNG of 16 bits": lambda: guilty.images(deep_png(), 2),
        "JPEG of 95 scans, 4 clients": lambda: guilty.images(with_scans(95), clients=4),
        "JPEG of 4 M markers": lambda: guilty.images(marker_flood()),
        "EXIF bomb": lambda: guilty.images(exif_bomb()),
        "photo of 16 megapixels": lambda: guilty.images(noise_photo()),
        "10,000 solid WebP as a job": lambda: guilty.images(solid_webp(), 10_000, Prefer="respond-async"),
        "zoo, steps=100000": lambda: guilty.attack("method=zoo&steps=100000&searches=30"),
        "pgd, 3000 steps": lambda: guilty.attack("method=pgd&steps=3000&stop_early=false&eps=1/255"),
        "30 attacks of clients that left": guilty.leave,
        "graph that does not end": guilty.endless_call,
        "graph that takes all memory": lambda: guilty.endless_call(HUGE),
        "import that does not end": lambda: guilty.importing(graphs.endless().SerializeToString()),
        "import that reads a file": lambda: guilty.importing(graphs.initializer_in_a_branch().SerializeToString()),
        "header of 20 MB": lambda: guilty.raw(long_header),
        "100,000 headers": lambda: guilty.raw(many_headers),
        "2,000 half requests": lambda: guilty.raw(b"POST /v1/models HTTP/1.1\r\nHost: x\r\nX", 2000, 60),
    }


def send_onnx(client: Client, name: str, content: bytes) -> dict:
    parts = {"card": (None, json.dumps(graphs.CARD)), "file": ("m.onnx", content, "application/octet-stream")}
    return client.ask("PUT", f"/v1/models/{name}", files=parts).json()


class Neighbour(threading.Thread):
    """Asks for one sample ten times a second, each with its own seed."""

    def __init__(self, url: str):
        super().__init__(daemon=True)
        self.url, self.waits, self.statuses = url, [], Counter()

    def run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=60) as client:
            for seed in range(1 << 30):
                start = time.perf_counter()
                try:
                    status = str(client.get(f"/v1/models/{NEIGHBOUR}/samples?n=1&seed={seed}").status_code)
                except httpx.HTTPError as error:
                    status = type(error).__name__
                self.waits.append(time.perf_counter() - start)
                self.statuses[status] += 1
                time.sleep(0.1)


class Memory(threading.Thread):
    """The peak resident memory of each process of the service, in MiB, by what it is."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.root, self.peaks = psutil.Process(pid), {}

    def run(self) -> None:
        while True:
            try:
                for process in (self.root, *self.root.children(recursive=True)):
                    line = " ".join(process.cmdline())
                    words = ("sandbox.child", "jobs.process", "infer", "train,report,light", "valkey", " web ", " up ")
                    name = next((word.strip() for word in words if word in line), "other")
                    self.peaks[name] = max(self.peaks.get(name, 0), process.memory_info().rss >> 20)
            except psutil.Error:
                pass
            time.sleep(0.1)


def prepare(url: str) -> None:
    with Client(url) as client:
        client.wait(client.ask("POST", "/v1/datasets?builtin=digits8").json()["id"])
        jobs = []
        for name, family in MODELS.items():
            body = {"family": family, "dataset": "digits8", "name": name, "config": SMALL}
            jobs.append(client.ask("POST", "/v1/trainings", json=body).json()["id"])
        jobs.append(send_onnx(client, BLACK_BOX, graphs.endless_from_the_image().SerializeToString())["id"])
        jobs.append(send_onnx(client, HUGE, graphs.huge_from_the_image(10**10).SerializeToString())["id"])
        for job in jobs:
            client.wait(job)
    guilty = Guilty(url)
    for _ in range(2):  # loads the models and measures what their passes cost
        guilty.images(png())
        guilty.attack("method=pgd&steps=20&stop_early=false")
        guilty.classify(BLACK_BOX, 90)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], help="words that the names of recipes contain")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    if options.list:
        print("\n".join(recipes(Guilty("http://127.0.0.1:1"))))
        return 0
    with tempfile.TemporaryDirectory(prefix="an") as folder:
        process = start_service(Path(folder) / "data")
        try:
            url = ready_service(Path(folder) / "data", process)["url"]
            prepare(url)
            return measure(url, process.pid, options.only)
        finally:
            end(process)


def measure(url: str, pid: int, only: list[str]) -> int:
    neighbour, memory = Neighbour(url), Memory(pid)
    neighbour.start(), memory.start()
    time.sleep(2)
    faults = []
    print(f"{'recipe':<34} {'n':>4} {'p50':>6} {'p99':>6} {'max':>6}  answers (seconds of the neighbour)")
    for name, recipe in recipes(Guilty(url)).items():
        if only and not any(word in name for word in only):
            continue
        first, start = len(neighbour.waits), time.perf_counter()
        answers = Counter(recipe())
        time.sleep(max(0.0, 4 - (time.perf_counter() - start)))
        waits = sorted(neighbour.waits[first:])
        p99 = waits[min(len(waits) - 1, int(0.99 * len(waits)))]
        faults += [f"{name}: p99 {p99:.2f} s"] if p99 > LIMIT_SECONDS else []
        said = "; ".join(f"{count} x {answer}" if count > 1 else answer for answer, count in answers.items())
        figures = f"{statistics.median(waits):6.2f} {p99:6.2f} {waits[-1]:6.2f}"
        print(f"{name:<34} {len(waits):>4} {figures}  {said}", flush=True)
    print("neighbour:", dict(neighbour.statuses))
    print("peak MiB:", dict(sorted(memory.peaks.items())))
    text = httpx.get(f"{url}/metrics", timeout=60).text
    counted = Counter()
    for status, number in re.findall(r'request_duration_seconds_count\{.*status="(\d+)".*\} ([0-9.e+]+)', text):
        counted[status] += int(float(number))
    print("answers of the service:", dict(sorted(counted.items())))
    faults += [f"neighbour got {status}" for status in neighbour.statuses if status != "200"]
    faults += [
        f"{counted[status]} x {status}" for status in counted if status >= "500" and status not in ("503", "504")
    ]
    print("faults:", "; ".join(faults) or "none")
    return bool(faults)


if __name__ == "__main__":
    raise SystemExit(main())
