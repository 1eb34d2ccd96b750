"""Data folders that cannot be used: one sentence and status 2 at the start, 503 or 507 while the service runs."""

import contextlib
import errno
import fcntl
import os
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from app.cli import service_lock
from app.cli.service_lock import CannotStart, check_folder, claimed
from app.core.errors import StorageDamaged, StorageFull, Unavailable
from app.core.store import blobs
from app.core.store.blobs import FolderStore
from app.core.store.database import make_engine, migrate, reading, transaction
from app.core.store.tables import models

ROOT = Path(__file__).parents[3]


def start(data: Path, *command: str) -> subprocess.CompletedProcess:
    names = ("DATABASE_URL", "BROKER_URL", "BLOBS_URL")
    env = {name: value for name, value in os.environ.items() if name not in names} | {"PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "app.cli", *command, "--data", str(data)]
    return subprocess.run(words, env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("command", [["up", "--port", "0"], ["worker", "--queues", "infer"], ["keys", "list"]])
def test_a_data_folder_that_is_a_file_is_one_sentence_and_status_2(tmp_path, command):
    (tmp_path / "data").write_text("a file")
    found = start(tmp_path / "data", *command)
    assert found.returncode == 2 and found.stderr.startswith("anamorph: The data folder"), found.stderr
    assert "is a file" in found.stderr and len(found.stderr.splitlines()) == 1


def test_a_database_that_is_damaged_or_of_a_later_release_is_one_sentence_and_status_2(tmp_path):
    (tmp_path / "anamorph.db").write_bytes(b"This is no database, although it has that name.\n" * 100)
    found = start(tmp_path, "up", "--port", "0")
    assert found.returncode == 2 and "damaged" in found.stderr and len(found.stderr.splitlines()) == 1, found.stderr
    (tmp_path / "anamorph.db").unlink()
    engine = make_engine(f"sqlite:///{tmp_path}/anamorph.db")
    migrate(engine)
    with transaction(engine) as conn:
        conn.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    engine.dispose()
    found = start(tmp_path, "up", "--port", "0")
    assert found.returncode == 2 and "later release" in found.stderr and len(found.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EROFS, "read-only file system"),
        (errno.EACCES, "not writable"),
        (errno.ENOSPC, "no space left"),
        (errno.EDQUOT, "quota"),
        (errno.EIO, "cannot be used"),
    ],
)
def test_why_a_folder_cannot_be_used_is_said(tmp_path, monkeypatch, number, words):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(CannotStart, match=words):
        check_folder(tmp_path)


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(CannotStart, match="no file locks"), claimed(tmp_path):
        pass
    assert service_lock.fcntl is fcntl


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, StorageFull), (errno.EROFS, Unavailable), (errno.EACCES, Unavailable), (errno.EIO, StorageDamaged)],
)
def test_a_blob_store_that_fails_is_one_sentence(tmp_path, monkeypatch, number, kind):
    store = FolderStore(tmp_path)

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(blobs.tempfile, "NamedTemporaryFile", refuse)
    with pytest.raises(kind) as caught:
        store.put("a", b"b")
    assert caught.value.status in (503, 507) and caught.value.detail.endswith(".") and caught.value.remedy


def test_a_locked_database_refuses_writes_and_answers_reads(sqlite_url):
    engine = make_engine(sqlite_url + "?timeout=0.1")
    other = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    with contextlib.closing(other):
        other.execute("BEGIN IMMEDIATE")
        with reading(engine) as conn:
            assert conn.execute(models.select()).all() == []
            conn.exec_driver_sql("PRAGMA busy_timeout=100")
        with pytest.raises(Unavailable, match="locked by another process"), transaction(engine):
            pass
    engine.dispose()


def test_a_read_only_database_refuses_writes_and_answers_reads(sqlite_url):
    engine = make_engine(sqlite_url)
    with reading(engine) as conn:
        assert conn.execute(models.select()).all() == []
        conn.exec_driver_sql("PRAGMA query_only=ON")
    with pytest.raises(Unavailable, match="opened or written"), transaction(engine) as conn:
        conn.execute(models.delete())
    engine.dispose()
