"""One embedded service for the whole test run: `service.url`, `service.client()`, `service.train(...)`."""

import base64
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.cli.client import Client
from app.cli.demo import TRAININGS
from app.cli.service_lock import running
from app.core.errors import NotFound
from tests.system.processes import end, eventually

START_SECONDS = 60  # of a machine that runs other tests meanwhile; alone it is a few


def start_service(data: Path, *options: str, **variables: str) -> subprocess.Popen:
    """`anamorph up` on any free port, in a session of its own."""
    command = [sys.executable, "-m", "app.cli", "up", "--quiet", "--port", "0", "--data", str(data), *options]
    names = ("DATABASE_URL", "BROKER_URL", "BLOBS_URL")
    environment = {name: value for name, value in os.environ.items() if name not in names} | variables
    data.mkdir(parents=True, exist_ok=True)
    with (data / "up.log").open("ab") as log:
        return subprocess.Popen(command, start_new_session=True, stdout=log, stderr=log, env=environment)


def ready_service(data: Path, process: subprocess.Popen) -> dict[str, Any]:
    """What the service published about itself once it was ready."""

    def ready() -> dict[str, Any] | None:
        assert process.poll() is None, (data / "up.log").read_text()
        found = running(data)
        return found if found and found.get("ready") else None

    return eventually(ready, START_SECONDS)


@dataclass(frozen=True)
class Service:
    """The shared service. Tests must not stop it, and name what they create after themselves."""

    url: str
    data: Path

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60)

    def train(self, family: str, dataset: str, name: str, config: dict[str, Any], **more: Any) -> dict[str, Any]:
        """The model of that name; the first test that wants it trains it, the others wait for it."""
        with locked(self.data / f"train-{name}.lock"), Client(self.url) as client:
            try:
                return client.measured(name)
            except NotFound:
                body = {"family": family, "dataset": dataset, "name": name, "config": config, "seed": 0, **more}
                client.wait(client.ask("POST", "/v1/trainings", json=body).json()["id"])
                return client.measured(name)


@contextmanager
def locked(file: Path) -> Iterator[Any]:
    with file.open("a+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle


@pytest.fixture(scope="session")
def service(tmp_path_factory, worker_id) -> Iterator[Service]:
    """Started by the first test process that needs it, which stops it when no other uses it any more."""
    base = tmp_path_factory.getbasetemp()
    shared = (base if worker_id == "master" else base.parent) / "service"
    shared.mkdir(exist_ok=True)
    users, data, mine = shared / "users", shared / "data", None
    with locked(users) as file:
        change(file, +1)
        if not running(data):
            mine = start_service(data)
            ready_service(data, mine)
    yield Service(running(data)["url"], data)
    while True:
        with locked(users) as file:
            if mine is None or count(file) == 1:
                change(file, -1)
                return end(mine) if mine else None
        time.sleep(0.2)


@pytest.fixture
def demo_models(service) -> dict[str, dict[str, Any]]:
    """The demo's three models after a short training, by name; all tests share them."""
    config = {"images": 640, "batch_size": 64}
    return {name: service.train(family, "mnist5k", name, config) for name, (family, _) in TRAININGS.items()}


@pytest.fixture
def digit(service, demo_models) -> bytes:
    """A PNG of a digit that no training has seen."""
    with service.client() as client:
        page = client.get("/v1/datasets/mnist5k/images", params={"split": "validation", "count": 1}).json()
    return base64.b64decode(page["data"][0]["image"])


def count(file: Any) -> int:
    file.seek(0)
    return int(file.read() or "0")


def change(file: Any, by: int) -> None:
    number = count(file) + by
    file.truncate(0)
    file.write(str(number))
    file.flush()
