"""The web front under test: a real database and blobs, and a stand-in for the inference lane at its outermost seam."""

import hashlib
import io
import struct
import urllib.request
import warnings
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import httpx
import numpy as np
import pytest

from app.core.calls.client import Answer, Call
from app.core.errors import WorkerLost
from app.core.jobs import sweeper
from app.core.jobs import workers as worker_rows
from app.core.settings import settings
from app.core.store import blobs, integrity
from app.core.store.database import engine as shared_engine
from app.core.store.database import new_id, now, transaction
from app.core.store.integrity import canonical
from app.core.store.tables import datasets, model_names, models
from app.main import create_app
from tests.app.small_catalog import CATALOG

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from moto.server import ThreadedMotoServer

DIGEST = "0123456789abcdef" * 4
CAPABILITIES = {
    "vae": ["Encodes", "Decodes", "HasPrior", "Denoises"],
    "classifier": ["Classifies"],
    "refiner": ["Refines"],
    "segmenter": ["Segments"],
}


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The address of an S3 server."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def new_bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty bucket; the environment names the server."""
    bucket = f"b{new_id()}"
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{bucket}", method="PUT")).close()
    for name, value in {
        "AWS_ENDPOINT": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    return f"s3://{bucket}/some/prefix"


@pytest.fixture
def anyio_backend():
    return "asyncio"


def png(value: int = 0, side: int = 8) -> bytes:
    """A gray square."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes([value % 256]) * side for _ in range(side))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def npy(rows) -> bytes:
    out = io.BytesIO()
    np.save(out, np.asarray(rows, np.float32))
    return out.getvalue()


@dataclass
class Lane:
    """Answers every call at once with as many images as were asked for, and keeps the calls it saw."""

    seen: list[Call] = field(default_factory=list)
    error: Exception | None = None
    waiting_weight: int = 0
    batches_out: int = 0
    alive: bool = True
    has_workers: bool = True
    recovered: int = 0
    compute_ms: float = 1.5
    live: dict[str, dict] = field(default_factory=lambda: {"worker:1": {"late": 0.0}})

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def ping(self) -> bool:
        return self.alive

    async def live_workers(self) -> dict[str, dict] | None:
        return self.live if self.alive else None

    async def recover(self) -> None:
        self.recovered += 1

    def abandon(self, call: Call) -> None: ...

    async def submit(self, call: Call) -> Answer:
        if not self.has_workers:
            raise WorkerLost("No inference worker is running.", retry_after=3)
        self.seen.append(call)
        if self.error:
            raise self.error
        count = 1 if call.grid else len(call.images or ()) or call.params.get("n") or call.params.get("count") or 1
        images = [npy(np.zeros((count, 1, 8, 8)))] if call.encoding == "npy" else [png(i) for i in range(count)]
        return Answer(
            images=[] if call.encoding == "none" else images,
            latents=npy([[0.5, -1.0]] * count) if call.operation in ("encode", "samples") else None,
            facts=self._facts(call, count),
            timings={"compute": self.compute_ms},
            extra={"perturbation": [png(9)] * count} if call.operation == "attack" else {},
        )

    def _facts(self, call: Call, count: int) -> dict:
        if call.operation == "classify":
            return {"items": [{"predictions": [{"label": "seven", "index": 7, "probability": 0.9}]}] * count}
        if call.operation == "attack":
            clean = {"label": "seven", "index": 7, "probability": 0.9}
            item = {"success": True, "success_float": True, "clean": clean, "adversarial": clean, "eps": 0.1}
            return {"items": [item | {"norms": {"linf": 0.1, "l2": 1.0, "l0": 64}, "queries": 2}] * count}
        if call.operation == "rehearsal":
            return {"config": call.params["config"] | {"images": 2000}}
        if call.operation == "dataset_images":
            return {"labels": [index % 2 for index in range(count)]}
        return {}


@pytest.fixture
def home(monkeypatch, tmp_path, sqlite_url):
    """Settings of a service of its own; yields a function that changes some of them."""

    def configure(**options):
        for name, value in options.items():
            monkeypatch.setenv(name if name.endswith("_URL") else f"ANAMORPH_{name.upper()}", str(value))
        settings.cache_clear()

    configure(DATABASE_URL=sqlite_url, data_dir=tmp_path, BROKER_URL=f"redis+socket://{tmp_path}/none.sock")
    shared_engine.cache_clear()
    blobs.store.cache_clear()
    monkeypatch.setattr(sweeper, "notify", lambda job_id, queue: True)
    yield configure
    shared_engine().dispose()
    for cached in (settings, shared_engine, blobs.store):
        cached.cache_clear()


@pytest.fixture
def lane():
    return Lane()


@pytest.fixture
def keyed(home):
    """Ask for this before `client` for a service that needs keys."""
    home(require_keys="true")


@pytest.fixture
async def app(home, lane, anyio_backend):
    app = create_app(CATALOG, lane)
    with transaction() as conn:
        worker_rows.beat(conn, "worker:1", ["infer", "train", "report", "light"])
    async with app.router.lifespan_context(app):
        await app.state.watch.check_workers()
        yield app


async def end_workers(app) -> None:
    """No worker lives any more, and the web front knows it."""
    app.state.calls.live.clear()
    with transaction() as conn:
        worker_rows.leave(conn, "worker:1")
    await app.state.watch.check_workers()


@pytest.fixture
async def client(app):
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
        yield client


def add_model(
    name: str,
    family: str = "vae",
    tenant: str = "local",
    digest: str | None = None,
    dataset: str = "squares",
    version: int = 0,
) -> str:
    """A published version that its name means from now on; its digest. One of another `digest` has no weights."""
    weights = f"{tenant} {name} {family} {version}".encode()
    card = {"name": name, "family": family, "data": {"height": 8, "width": 8, "channels": 1}}
    if digest is None:
        digest = hashlib.sha256(weights + integrity.undigested(card)).hexdigest()
        for file, data in {"weights.safetensors": weights, "card.json": canonical(card | {"digest": digest})}.items():
            with suppress(FileExistsError):
                blobs.put(f"models/{digest}/{file}", data)
    card["digest"] = digest
    with transaction() as conn:
        row = {"id": new_id(), "tenant": tenant, "digest": digest, "name": name, "family": family, "card": card}
        row |= {
            "dataset": dataset,
            "config": {},
            "seed": 0,
            "metrics": {"mse": 0.1},
            "bytes": len(weights),
            "created_at": now(conn),
        }
        conn.execute(models.insert().values(**row, capabilities=CAPABILITIES[family]))
        mine = (model_names.c.tenant == tenant) & (model_names.c.name == name)
        conn.execute(model_names.delete().where(mine))
        conn.execute(model_names.insert().values(tenant=tenant, name=name, digest=digest, updated_at=now(conn)))
    return digest


def add_dataset(name: str, layout: str = "labelled", tenant: str = "local", **other: int) -> None:
    """An imported dataset of 8x8 gray images, or with other facts."""
    columns = {"images": 80} | {"labelled": {"labels": 80}, "segmentation": {"masks": 80}}.get(layout, {})
    facts = {"layout": layout, "height": 8, "width": 8, "channels": 1, "classes": ["even", "odd"]} | other
    facts["columns"] = {"train": columns, "validation": dict.fromkeys(columns, 20)}
    with transaction() as conn:
        row = {"id": new_id(), "tenant": tenant, "name": name, "digest": DIGEST, "layout": layout, "facts": facts}
        row |= {"source": "upload", "bytes": 6400, "created_at": now(conn)}
        conn.execute(datasets.insert().values(**row))
