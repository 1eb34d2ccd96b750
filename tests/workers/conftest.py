"""Fixtures of the worker tests: storage of their own, and a database where one is needed."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.core.settings import settings
from app.core.store import blobs, database
from app.core.store.keys import LOCAL
from models import family
from tests.workers import served, trainings
from workers import devices
from workers.inference import host


@pytest.fixture(autouse=True)
def auto_precision_is_float32(monkeypatch):
    """In this process, so that numbers do not depend on the machine."""
    monkeypatch.setattr(family, "computes_bf16", lambda device: False)


@pytest.fixture
def storage(tmp_path, monkeypatch) -> Iterator[Path]:
    """A data folder of the test's own; settings and blob store point there."""
    monkeypatch.setenv("ANAMORPH_DATA_DIR", str(tmp_path / "data"))
    settings.cache_clear()
    blobs.store.cache_clear()
    yield tmp_path / "data"
    settings.cache_clear()
    blobs.store.cache_clear()


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def digest(storage, sqlite_url, monkeypatch) -> Iterator[str]:
    """A dataset of the local tenant, and models that draw images like its own; see served.py."""
    monkeypatch.setenv("DATABASE_URL", sqlite_url)
    settings.cache_clear()
    database.engine.cache_clear()
    monkeypatch.setattr(devices, "use_threads", lambda wanted: None)
    digest = trainings.store_dataset(tenant=LOCAL)
    served.publish_all(digest)
    yield digest
    host.host.cache_clear()
    database.engine().dispose()
    database.engine.cache_clear()


@pytest.fixture
async def gallery(digest, anyio_backend):
    """A client of the front that serves them."""
    async with served.front() as client:
        yield client


@pytest.fixture
def place(storage, sqlite_template, monkeypatch) -> Iterator[Path]:
    """The same with a migrated database in it; this process and its children find both."""
    for name in ("DATABASE_URL", "BROKER_URL", "BLOBS_URL"):
        monkeypatch.delenv(name, raising=False)
    storage.mkdir(exist_ok=True)
    shutil.copy(sqlite_template, storage / "anamorph.db")
    for cache in (settings, blobs.store, database.engine):
        cache.cache_clear()
    yield storage
    database.engine().dispose()
    database.engine.cache_clear()
