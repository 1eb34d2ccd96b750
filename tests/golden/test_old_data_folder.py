"""A data folder that release 0.1 wrote opens in this one: the same jobs, data, models and answers, and work goes on.

In the folder: a dataset and one derived from it, models of three families, an ONNX import, a defended model, a
universal perturbation, reports, a failed import, a training canceled before it began, one canceled on its way, and one
that was running when its service stopped.
"""

import json
import lzma
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.golden import old_data
from tests.golden.test_runs import SAME_BITS
from tests.golden.test_surface import RENAMED
from tests.system.conftest import ready_service, start_service
from tests.system.processes import end

FOLDER = Path(__file__).parent
OLD = json.loads(lzma.decompress((FOLDER / "data-0.1.json.xz").read_bytes()))


@pytest.fixture(params=["as it is", pytest.param("restored from its backup", marks=pytest.mark.long)])
def client(request, tmp_path) -> Iterator[httpx.Client]:
    with tarfile.open(FOLDER / "data-0.1.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    data = tmp_path / "anamorph-data"
    if request.param != "as it is":
        anamorph("backup", tmp_path / "backup", "--data", data)
        data = tmp_path / "restored"
        anamorph("restore", tmp_path / "backup", "--data", data)
    process = start_service(data, **old_data.ENVIRONMENT)
    try:
        with httpx.Client(base_url=ready_service(data, process)["url"], timeout=60) as client:
            yield client
    finally:
        end(process)


def anamorph(*words: str | Path) -> None:
    command = [sys.executable, "-m", "app.cli", *map(str, words)]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": str(FOLDER.parents[1])}, check=True, timeout=300)


@pytest.mark.timeout(600)
def test_the_data_folder_of_release_0_1_opens_and_its_trainings_go_on(client):
    jobs, before = OLD["jobs"], OLD["observed"]
    for part, name in (("jobs", jobs["interrupted"]), ("snapshots", jobs["interrupted"]), ("models", "interrupted")):
        del before[part][name]  # made anew, at another time
    found = {"interrupted": old_data.resumed(client, jobs["interrupted"]), "observed": old_data.observed(client)}
    found["stopped"] = old_data.resumed(client, jobs["stopped"])
    found["report"] = old_data.reported(client)
    wrong = list(differences({name: OLD[name] for name in found}, found))
    assert not wrong, "\n".join(wrong[:40])


def differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Where `new` is not `old`. New members are allowed; on another machine what is computed now may differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key, value in old.items():
            yield from differences(value, new[key], f"{path}/{key}") if key in new else [f"{path}/{key} is missing"]
    elif path.startswith(COMPUTED_ANEW):
        return
    elif path.endswith("/capabilities"):
        if missing := {RENAMED.get(name, name) for name in old} - {RENAMED.get(name, name) for name in new}:
            yield f"{path} lacks {missing}"
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, pair in enumerate(zip(old, new, strict=True)):
            yield from differences(*pair, f"{path}/{index}")
    elif new == "text" and str(old).startswith("sha256:"):
        return  # sentences of more than 100 characters were recorded as digests
    elif path.endswith("/metrics/nll"):  # summed in double precision by now
        if abs(new - old) > 1e-6 * abs(old):
            yield f"{path} was {old}, is {new}"
    elif old != new and (SAME_BITS or path.startswith(STORED)):
        yield f"{path} was {old}, is {new}"


STORED = tuple(f"/observed/{name}" for name in ("jobs", "curves", "snapshots", "datasets", "images", "models", "files"))
"""What is not computed again, and so is the same on every machine."""
COMPUTED_ANEW = ("/observed/answers/anomaly/",)
"""Scores by another method than in release 0.1 (the distance of codes counts, unscaled): only their names are kept."""
