"""`anamorph doctor --blobs`: finds each damaged or missing file, repairs what has another copy, writes nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.cli import blob_check
from app.cli.blob_check import check_blobs
from app.core.store import blobs, contents
from app.core.store.database import transaction
from app.core.store.tables import models
from tests.app.conftest import add_model

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def no_worker(monkeypatch):
    """Computing files again is tested with the workers."""
    monkeypatch.setattr(blob_check, "made_again", lambda item: None)


def checked(capsys, heal: bool = False, backup: Path | None = None) -> tuple[int, dict]:
    status = check_blobs(heal, backup, as_json=True)
    return status, json.loads(capsys.readouterr().out)


def test_intact_files_are_found_well(filled, capsys):
    status, found = checked(capsys)
    assert (status, found["findings"], found["bad"]) == (0, [], 0)
    assert found["items"] == 3 + len(filled.jobs) and found["files"] >= len(filled.files)


@pytest.mark.parametrize("fault", ["missing", "damaged"])
def test_each_bad_file_is_found_with_its_item_and_a_remedy(filled, capsys, fault):
    for kind, key in filled.files.items():
        good = blobs.get(key)
        blobs.delete_prefix(key) if fault == "missing" else blobs.put(key, flipped(good), create_only=False)
        status, found = checked(capsys)
        findings = {finding["key"]: finding for finding in found["findings"]}
        assert status == 1 and findings[key]["fault"] == fault and findings[key]["remedy"] and findings[key]["tenant"]
        if kind != "arrays":  # the digest of a dataset covers all its arrays
            assert list(findings) == [key]
        status, found = checked(capsys, heal=True)
        if kind in ("card", "facts"):
            assert status == 0 and blobs.get(key) == good
        else:
            assert status == 1 and found["bad"] == len(found["findings"])
        blobs.put(key, good, create_only=False)
    assert checked(capsys)[0] == 0


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def test_weights_come_from_a_model_with_the_same(filled, capsys):
    key = filled.files["weights"]
    good = blobs.get(key)
    add_model("v", digest="a" * 64)  # another version of equal weights
    with transaction() as conn:
        conn.execute(models.update().where(models.c.digest == "a" * 64).values(bytes=len(good)))
    blobs.put(f"models/{'a' * 64}/weights.safetensors", good)
    blobs.put(key, b"?" * len(good), create_only=False)
    _, found = checked(capsys, heal=True)
    healed = {finding["key"]: finding["healed"] for finding in found["findings"]}
    assert "same weights" in healed[key] and blobs.get(key) == good


def test_an_exported_file_is_dropped_and_written_again_when_asked_for(filled, capsys):
    folder = f"models/{filled.model}"
    blobs.put(f"{folder}/decoder.onnx", b"damaged")
    blobs.put(f"{folder}/decoder.onnx.json", json.dumps({"part": "decoder", "sha256": "0" * 64}).encode())
    assert checked(capsys)[0] == 1
    assert checked(capsys, heal=True)[0] == 0
    assert not blobs.exists(f"{folder}/decoder.onnx") and not blobs.exists(f"{folder}/decoder.onnx.json")


def test_an_item_that_was_deleted_meanwhile_is_no_damage(filled, capsys, monkeypatch):
    item = next(item for item in contents.items() if item.kind == "model")
    blobs.delete_prefix(f"models/{filled.model}")
    with transaction() as conn:
        conn.execute(models.delete())
    assert item.faults() and not list(blob_check.examine(item, heal=False, backup=None))


def doctor(folder: Path, *words: str) -> subprocess.CompletedProcess:
    names = ("DATABASE_URL", "BROKER_URL", "BLOBS_URL", "ANAMORPH_DATA_DIR", "ANAMORPH_URL")
    env = {name: value for name, value in os.environ.items() if name not in names} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "app.cli", "doctor", *words]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)


def test_doctor_makes_nothing_where_nothing_is(tmp_path):
    for words in (["--only", "database", "--only", "disk", "--only", "blobs", "--only", "worker"], ["--blobs"]):
        doctor(tmp_path, *words, "--json")
        assert list(tmp_path.iterdir()) == []
    found = doctor(tmp_path, "--blobs")
    assert found.returncode == 0 and "Nothing is stored here yet" in found.stdout


def test_options_that_do_not_go_together_are_refused(tmp_path):
    for words in (["--heal"], ["--blobs", "--from", "backup"]):
        found = doctor(tmp_path, *words)
        assert found.returncode == 2 and "--heal" in found.stderr
