"""Blobs in a folder and in an S3 server: whole or absent, never written twice, never outside their place."""

import os
import resource
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import obstore
import pytest

from app.core.errors import StorageFull, Unavailable
from app.core.store import blobs
from app.core.store.blobs import FolderStore, open_store
from tests.app.conftest import new_bucket


@pytest.fixture(params=["folder", "s3"])
def store(request, tmp_path, monkeypatch):
    if request.param == "folder":
        return open_store(f"file://{tmp_path}/blobs", tmp_path / "cache", 10_000)
    return s3_store(request.getfixturevalue("s3"), tmp_path, monkeypatch)


def s3_store(endpoint, tmp_path, monkeypatch):
    return open_store(new_bucket(endpoint, monkeypatch), tmp_path / "cache", 10_000)


def test_what_is_put_is_got(store, tmp_path):
    store.put("jobs/1/a.bin", b"\0\xff" * 500)
    (tmp_path / "file").write_bytes(b"from a file")
    store.put("jobs/1/b.bin", tmp_path / "file")
    assert store.get("jobs/1/a.bin") == b"\0\xff" * 500
    assert store.path("jobs/1/b.bin").read_bytes() == b"from a file"
    assert store.list("jobs/1") == [("jobs/1/a.bin", 1000), ("jobs/1/b.bin", 11)]
    assert store.exists("jobs/1/a.bin") and not store.exists("jobs/1")


def test_a_key_is_written_once_unless_said_otherwise(store):
    store.put("k", b"first")
    with pytest.raises(FileExistsError):
        store.put("k", b"second")
    assert store.get("k") == b"first" and store.path("k").read_bytes() == b"first"
    store.put("k", b"third", create_only=False)
    assert store.get("k") == b"third" and store.path("k").read_bytes() == b"third"


def test_of_many_writers_of_a_key_one_wins(store):
    gate = threading.Barrier(8)

    def write(index):
        gate.wait()
        try:
            store.put("raced", str(index).encode() * 1000)
        except FileExistsError:
            return None
        return index

    with ThreadPoolExecutor(8) as pool:
        winners = [index for index in pool.map(write, range(8)) if index is not None]
    assert len(winners) == 1
    assert store.get("raced") == str(winners[0]).encode() * 1000


def test_absent_blobs_are_not_found(store):
    for look in (store.get, store.path):
        with pytest.raises(FileNotFoundError):
            look("no/such/blob")
    assert not store.exists("no/such/blob")
    assert store.list("no/such") == []


def test_a_prefix_goes_with_all_below_and_nothing_beside(store):
    for key in ("jobs/1/1/a", "jobs/1/2/b", "jobs/10/1/a"):
        store.put(key, b"x")
    store.path("jobs/1/1/a")
    store.delete_prefix("jobs/1/")
    assert not store.exists("jobs/1/1/a") and not store.exists("jobs/1/2/b")
    with pytest.raises(FileNotFoundError):
        store.path("jobs/1/1/a")
    assert store.list("jobs") == [("jobs/10/1/a", 1)]
    store.delete_prefix("jobs/10/1/a")
    assert store.list("jobs") == []
    store.delete_prefix("jobs/10")


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/",
        "/etc/passwd",
        "../x",
        "a/../b",
        "a/..",
        ".",
        "a//b",
        "a/",
        ".tmp/x",
        "a\\b",
        "a\0",
        "a%2fb",
        "a#b",
        "é",
        "a b",
    ],
)
def test_no_key_leads_outside(store, key):
    for use in (store.get, store.path, store.exists, lambda key: store.put(key, b"")):
        with pytest.raises(ValueError, match="blob key"):
            use(key)


def test_arrays_are_mapped_from_the_path(store, tmp_path):
    array = np.arange(600, dtype=np.uint8).reshape(2, 3, 10, 10)
    np.save(tmp_path / "a.npy", array)
    store.put("datasets/d/train/images.npy", tmp_path / "a.npy")
    mapped = np.load(store.path("datasets/d/train/images.npy"), mmap_mode="r")
    assert isinstance(mapped, np.memmap) and (mapped == array).all()


def test_a_full_disk_leaves_no_trace_and_no_crash(tmp_path):
    store = FolderStore(tmp_path / "blobs")
    store.put("small", b"x" * 1000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(StorageFull):
            store.put("large", b"x" * 200_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not store.exists("large") and list((tmp_path / "blobs" / ".tmp").iterdir()) == []
    store.put("large", b"x" * 200_000)
    assert len(store.get("large")) == 200_000


def test_what_killed_writers_left_is_removed_after_a_day(tmp_path):
    store = FolderStore(tmp_path)
    store.put("a", b"1")
    for name, age in (("old", 90_000), ("new", 80_000)):
        (tmp_path / ".tmp" / name).write_bytes(b"half")
        os.utime(tmp_path / ".tmp" / name, (time.time() - age,) * 2)
    store.tidy()
    assert [path.name for path in (tmp_path / ".tmp").iterdir()] == ["new"]
    assert store.list("a") == [] and store.get("a") == b"1"


def test_local_copies_of_s3_blobs_stay_below_their_limit(s3, tmp_path, monkeypatch):
    store = s3_store(s3, tmp_path, monkeypatch)
    for index in range(5):
        store.put(f"many/{index}", bytes([index]) * 3000)
    mapped = np.memmap(store.path("many/0"))
    for index in range(1, 5):
        assert store.path(f"many/{index}").read_bytes() == bytes([index]) * 3000
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in kept) <= 10_000
    assert (mapped == 0).all()
    assert store.path("many/0").read_bytes() == bytes(3000)


def test_large_objects_go_up_in_parts(s3, tmp_path, monkeypatch):
    store = s3_store(s3, tmp_path, monkeypatch)
    monkeypatch.setattr(blobs, "SINGLE_PUT", 1 << 20)
    data = np.random.default_rng(0).bytes(12 << 20)
    (tmp_path / "large").write_bytes(data)
    store.put("large", tmp_path / "large")
    assert store.get("large") == data
    with pytest.raises(FileExistsError):
        store.put("large", tmp_path / "large")


def test_an_object_store_that_is_gone_is_unavailable(s3, tmp_path, monkeypatch):
    store = s3_store(s3, tmp_path, monkeypatch)

    def gone(*args, **options):
        raise obstore.exceptions.GenericError("connection refused")

    for name in ("put", "get", "head"):
        monkeypatch.setattr(obstore, name, gone)
    for use in (store.get, store.path, store.exists, lambda key: store.put(key, b"")):
        with pytest.raises(Unavailable):
            use("k")


def test_other_stores_are_refused_with_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="ftp"):
        open_store("ftp://host/x", tmp_path, 1)
