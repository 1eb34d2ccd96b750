"""Options: embedded unless told otherwise, and the same URLs for the programs that read them differently."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError
from sqlalchemy.engine import make_url

from app.core.settings import Settings
from app.core.store.blobs import open_store


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    for name in ("DATABASE_URL", "BROKER_URL", "BLOBS_URL", "ANAMORPH_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)


def test_everything_is_embedded_in_the_data_folder_by_default(monkeypatch):
    monkeypatch.setenv("ANAMORPH_DATA_DIR", "relative/folder")
    monkeypatch.setenv("DATABASE_URL", "")
    options, folder = Settings(), Path("relative/folder").absolute()
    assert options.database_url == f"sqlite:///{folder}/anamorph.db"
    assert options.blobs_url == f"file://{folder}/blobs"
    assert options.redis_url == f"unix://{folder}/broker.sock"
    assert options.broker_url == f"redis+socket://{folder}/broker.sock"


@pytest.mark.parametrize(
    ("given", "celery", "redis"),
    [
        ("redis://host:6379/1", "redis://host:6379/1", "redis://host:6379/1"),
        ("valkey://host", "redis://host", "redis://host"),
        ("redis+socket:///run/v.sock", "redis+socket:///run/v.sock", "unix:///run/v.sock"),
    ],
)
def test_one_broker_url_serves_celery_and_redis(monkeypatch, given, celery, redis):
    monkeypatch.setenv("BROKER_URL", given)
    assert (Settings().broker_url, Settings().redis_url) == (celery, redis)


@pytest.mark.parametrize("name", ["LEASE_SECONDS", "MAX_FAILURES", "CALL_BATCH", "RESIDENT_BYTES"])
def test_senseless_options_are_refused_by_name(monkeypatch, name):
    monkeypatch.setenv(f"ANAMORPH_{name}", "0")
    with pytest.raises(ValidationError, match=name.lower()):
        Settings()


def test_notifying_a_dead_broker_fails_quickly(tmp_path, monkeypatch):
    monkeypatch.setenv("BROKER_URL", f"redis+socket://{tmp_path}/nobody.sock")
    code = (
        "import time; from app.core.jobs.queue import notify; t = time.time(); "
        "print(notify('x', 'train'), time.time() - t)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert answer[-2] == "False" and float(answer[-1]) < 5


def test_a_folder_whose_name_means_something_in_a_url_holds_everything(tmp_path, monkeypatch):
    folder = tmp_path / "a b#1?%41"
    monkeypatch.setenv("ANAMORPH_DATA_DIR", str(folder))
    found = Settings()
    assert make_url(found.database_url).database == f"{folder}/anamorph.db"
    store = open_store(found.blobs_url, tmp_path / "cache", 1)
    store.put("x/y", b"1", True)
    assert (folder / "blobs" / "x" / "y").read_bytes() == b"1"
