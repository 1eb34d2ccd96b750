"""Calls per second over loopback, beside what the same machine does without a server: decode, forward, encode.

Starts the embedded service in a folder of its own, trains a small autoencoder on digits, and loads /reconstruct. Share
is the service's rate over the floor's, both from this run; p50 and p99 are milliseconds as a client sees them.
"""

import asyncio
import base64
import os
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

from app.cli.client import Client
from tests.benchmarks.load import drive, request
from tests.system.conftest import ready_service, start_service
from tests.system.processes import end

CONCURRENCY = 1, 16, 64
BATCHES = 1, 8, 32, 64
IMAGES = 64
MODEL = "bench"


def floor(digest: str, images: list[bytes], seconds: float) -> float:
    """Images per second of one process that decodes, runs the model and encodes, at its best batch size."""
    import torch

    from app.core.settings import settings
    from workers import codecs
    from workers.store.models import load_model

    settings.cache_clear()
    model = load_model(digest)
    best = 0.0
    for size in BATCHES:
        done, start = 0, time.perf_counter()
        with torch.inference_mode():
            while time.perf_counter() - start < seconds / len(BATCHES):
                batch = codecs.to_tensor(codecs.decode_batch(facts_of(model), (images * 2)[:size]))
                codecs.encode_png(model.decode(model.encode(batch)))
                done += size
        best = max(best, done / (time.perf_counter() - start))
    return best


def facts_of(model) -> dict:
    """The size of image the model takes, as the codecs ask for it."""
    return {"channels": model.data.channels, "height": model.data.height, "width": model.data.width}


def prepare(client: Client) -> str:
    """Trains the model and gives its digest."""
    body = {"family": "autoencoder", "dataset": "mnist5k", "name": MODEL, "config": {"epochs": 1}}
    job = client.wait(client.ask("POST", "/v1/trainings", json=body).json()["id"])
    return job["result"]["version"]


def digits(client: Client) -> list[bytes]:
    """Held-out digits as PNG files."""
    page = client.get("/v1/datasets/mnist5k/images", split="validation", count=IMAGES)
    return [base64.b64decode(item["image"]) for item in page["data"]]


def bench(seconds: float = 5) -> None:
    with tempfile.TemporaryDirectory(prefix="anamorph-bench-") as folder:
        data = Path(folder)
        os.environ["ANAMORPH_DATA_DIR"] = folder  # the floor reads the model where the service keeps it
        process = start_service(data)
        try:
            url = ready_service(data, process)["url"]
            with Client(url) as client:
                digest, images = prepare(client), digits(client)
            report(url, digest, images, seconds)
        finally:
            end(process)


def report(url: str, digest: str, images: list[bytes], seconds: float) -> None:
    where = urlsplit(url)
    messages = [request("POST", f"/v1/models/{MODEL}@{digest[:16]}/reconstruct", image) for image in images]
    asyncio.run(drive(where.hostname, where.port, messages, 16, 2))  # warm-up
    raw = floor(digest, images, seconds)
    print(f"raw floor          {raw:8.0f} images/s, one process, no server")
    for concurrency in CONCURRENCY:
        found = asyncio.run(drive(where.hostname, where.port, messages, concurrency, seconds))
        print(
            f"concurrency {concurrency:4d}   {found.rate:8.0f} calls/s   p50 {found.p50:7.2f}   p99 {found.p99:7.2f}"
            f"   share {found.rate / raw:5.2f}   errors {found.errors}"
        )


if __name__ == "__main__":
    bench()
