"""Fixtures of all rooms: a database of either kind, fresh for each test, and a private broker."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from app.core.database import make_engine, migrate
from tests.servers import Valkey, drop_database, new_database, postgres_url


@pytest.fixture(scope="session")
def postgres() -> Iterator[tuple[str, str]]:
    """(server URL, name of a migrated database to copy)."""
    server = postgres_url()
    template = new_database(server)
    engine = make_engine(template)
    migrate(engine)
    engine.dispose()
    yield server, template.split("?")[0].rsplit("/", 1)[1]


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request, tmp_path) -> Iterator[str]:
    """A migrated database of its own, once on SQLite and once on PostgreSQL."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/anamorph.db"
        engine = make_engine(url)
        migrate(engine)
        engine.dispose()
        yield url
        return
    server, template = request.getfixturevalue("postgres")
    url = new_database(server, template)
    yield url
    drop_database(server, url)


@pytest.fixture
def engine(database_url) -> Iterator[Engine]:
    engine = make_engine(database_url, pool_size=20)
    yield engine
    engine.dispose()


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    with tempfile.TemporaryDirectory(prefix="vk") as folder:  # unix socket paths must stay short
        server = Valkey(Path(folder))
        yield server
        server.stop()
