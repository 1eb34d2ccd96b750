"""`anamorph up`: the whole service by one command, and nothing left of it afterwards, however it ends."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from app.cli.service_lock import running
from tests.system.conftest import ready_service, start_service
from tests.system.processes import alive, command, descendants, end, eventually


def anamorph(*words: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "app.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, **options)


def part(pid: int, words: str) -> psutil.Process | None:
    """The service's process whose command line holds `words`."""
    return next((child for child in alive(psutil.Process(pid).children()) if words in command(child)), None)


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Iterator[tuple[subprocess.Popen, Path, str]]:
    """A service that tests may hurt: (process, data folder, address)."""
    data = tmp_path_factory.mktemp("own")
    process = start_service(data)
    yield process, data, ready_service(data, process)["url"]
    end(process)


def test_it_answers_and_is_ready(own):
    _, _, url = own
    assert httpx.get(f"{url}/livez").status_code == 200
    assert httpx.get(f"{url}/readyz").status_code == 200


def test_a_second_start_on_the_same_data_says_so_and_exits_2(own):
    process, data, url = own
    second = anamorph("up", "--data", str(data), "--port", "0")
    assert second.returncode == 2
    assert url in second.stderr and str(process.pid) in second.stderr and "--data" in second.stderr


def test_a_port_that_is_taken_exits_2_with_a_remedy(own, tmp_path):
    port = own[2].rsplit(":", 1)[1]
    found = anamorph("up", "--data", str(tmp_path / "other"), "--port", port)
    assert found.returncode == 2
    assert port in found.stderr and "--port 0" in found.stderr


@pytest.mark.parametrize("words", ["app.cli web", "-Q infer", "valkey-server"])
def test_a_killed_part_comes_back_and_the_service_is_ready_again(own, words):
    process, _, url = own
    killed = part(process.pid, words)
    killed.kill()
    eventually(lambda: (found := part(process.pid, words)) and found.pid != killed.pid)
    eventually(lambda: ready(url))
    assert process.poll() is None


def ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=30).json()["status"] == "ok"
    except httpx.TransportError:
        return False


def test_ctrl_c_stops_everything_cleanly(tmp_path):
    process = start_service(tmp_path)
    ready_service(tmp_path, process)
    below = descendants(process.pid)

    process.send_signal(signal.SIGINT)

    assert process.wait(30) == 0
    assert not alive(below)
    assert running(tmp_path) is None


def test_a_killed_supervisor_leaves_no_orphan_and_the_data_starts_again(tmp_path):
    process = start_service(tmp_path)
    ready_service(tmp_path, process)
    below = descendants(process.pid)

    process.kill()
    process.wait()
    died = time.monotonic()
    eventually(lambda: not alive(below))

    assert time.monotonic() - died < 2
    again = start_service(tmp_path)
    ready_service(tmp_path, again)
    assert end(again) == 0


def test_the_network_is_not_let_in_without_a_key(tmp_path):
    refused = anamorph("up", "--data", str(tmp_path), "--port", "0", "--host", "0.0.0.0")
    assert refused.returncode == 2
    assert "anamorph keys create" in refused.stderr


def test_a_data_folder_with_a_long_path_and_spaces_works(tmp_path):
    data = tmp_path / ("long name " * 12).strip()
    process = start_service(data)
    found = ready_service(data, process)
    assert len(found["broker_url"]) < 140
    assert end(process) == 0
