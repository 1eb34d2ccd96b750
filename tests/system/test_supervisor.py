"""The supervisor with small stand-ins for its parts: order, restart, giving up, and nothing left behind."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.system.processes import alive, command, descendants, end, eventually

DRIVER = """
import sys
from pathlib import Path
from app.cli import supervisor
from app.cli.logs import Logs

folder = Path(sys.argv[1])
supervisor.SLOW_SECONDS = .3

READY_SECONDS = 0

def part(name, play, **options):
    code = f"from pathlib import Path; import os, signal, sys, time; folder = Path({str(folder)!r})\\n"
    code += f"name = {name!r}\\n" + play
    ready = lambda pid: (folder / f"{name}.{pid}").exists()
    return supervisor.Part(name, [sys.executable, "-c", code], ready, **options)

UP = "(folder / f'{name}.{os.getpid()}').touch()"
STAY = '''
def note(*_):
    with (folder / "stops").open("a") as file: print(name, file=file)
    sys.exit()
signal.signal(signal.SIGTERM, note)
(folder / f"{name}.{os.getpid()}").touch()
with (folder / "starts").open("a") as file: print(name, file=file)
time.sleep(60)
'''
BUSY = '''
end = time.process_time() + 1.5
while time.process_time() < end: pass
''' + STAY
HUNG = "time.sleep(600)"
STUBBORN = STAY.replace("sys.exit()", "pass").replace("time.sleep(60)", "while True: time.sleep(60)")
PARENT = "import subprocess; subprocess.Popen(['sleep', '60'])\\n" + STAY
parts = eval(sys.argv[2])
runner = supervisor.Supervisor(parts, Logs(folder / "logs"), READY_SECONDS)
raise SystemExit(runner.run(lambda: (folder / "ready").touch()))
"""
CALM = "[part('one', STAY, first=True), part('two', PARENT), part('three', STAY)]"


@pytest.fixture
def supervise(tmp_path: Path):
    started: list[subprocess.Popen] = []

    def start(parts: str, wait: bool = True) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(tmp_path), parts], stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        if wait:
            eventually((tmp_path / "ready").exists)
        return process

    yield start
    for process in started:
        end(process)
        process.stderr.close()


def player(folder: Path, name: str) -> int:
    """The process that plays the part now: the newest that has reported."""
    newest = max(folder.glob(f"{name}.*"), key=lambda file: file.stat().st_mtime_ns)
    return int(newest.suffix[1:])


def test_parts_start_in_order_and_stop_in_reverse_with_their_children(supervise, tmp_path):
    process = supervise(CALM)
    below = descendants(process.pid)
    assert len(below) == 5  # three parts, one grandchild, the guard

    process.send_signal(signal.SIGINT)

    assert process.wait(60) == 0
    assert (tmp_path / "starts").read_text().split()[0] == "one"
    assert (tmp_path / "stops").read_text().split() == ["three", "two", "one"]
    assert not alive(below)


def test_a_part_that_dies_is_started_again(supervise, tmp_path):
    process = supervise(CALM)
    killed = player(tmp_path, "two")
    grandchild = descendants(killed)

    psutil.Process(killed).kill()

    eventually(lambda: player(tmp_path, "two") != killed)
    assert process.poll() is None
    assert not alive(grandchild)


def test_a_part_that_keeps_dying_ends_the_service_with_status_1(supervise, tmp_path):
    dies = "part('frail', UP + '\\ntime.sleep(0.4); sys.exit(7)')"
    patched = DRIVER.replace("READY_SECONDS = 0", "supervisor.LONGEST_BACKOFF_SECONDS, READY_SECONDS = 0.01, 0")
    process = subprocess.Popen(
        [sys.executable, "-c", patched, str(tmp_path), f"[{dies}]"], stderr=subprocess.PIPE, text=True
    )

    _, said = process.communicate(timeout=120)

    assert process.returncode == 1
    assert "frail ended 5 times within 60 s" in said


def test_a_part_that_cannot_start_is_named_at_once(supervise, tmp_path):
    process = supervise("[part('broken', 'print(1 / 0)')]", wait=False)

    _, said = process.communicate(timeout=120)

    assert process.returncode == 1
    assert "broken ended with status 1 while starting" in said
    assert "ZeroDivisionError" in (tmp_path / "logs" / "broken.log").read_text()


def test_a_start_waits_for_parts_that_work_and_says_which(supervise, tmp_path):
    process = supervise("[part('quick', STAY), part('slow', BUSY)]")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "slow is still starting after" in said


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("supervisor.IDLE_SECONDS = 1", "hung is not ready and has done nothing for 1 s"),
        ("READY_SECONDS = 1", "Not ready after 1 s: hung"),
    ],
)
def test_a_part_that_hangs_at_the_start_is_given_up(tmp_path, setting, says):
    patched = DRIVER.replace("parts = eval", f"{setting}\nparts = eval")
    process = subprocess.Popen(
        [sys.executable, "-c", patched, str(tmp_path), "[part('hung', HUNG)]"], stderr=subprocess.PIPE, text=True
    )
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert says in said


def test_a_second_interrupt_does_not_wait_for_a_stubborn_part(supervise, tmp_path):
    process = supervise("[part('stubborn', STUBBORN, grace_seconds=60)]")
    below = descendants(process.pid)
    process.send_signal(signal.SIGINT)
    eventually((tmp_path / "stops").exists)

    process.send_signal(signal.SIGINT)

    assert process.wait(30) == 0  # the part would have been waited for twice as long
    assert not alive(below)


def test_nothing_outlives_a_killed_supervisor(supervise, tmp_path):
    process = supervise("[part('calm', PARENT), part('stubborn', STUBBORN)]")
    below = descendants(process.pid)
    assert len(below) == 4

    process.kill()

    eventually(lambda: not alive(below))


def test_a_guard_that_dies_is_replaced_and_still_knows_everyone(supervise, tmp_path):
    process = supervise(CALM)
    below = descendants(process.pid)
    guard = next(child for child in below if command(child).endswith("watchdog.py"))
    guard.kill()
    eventually(
        lambda: any(
            "watchdog.py" in command(child)
            for child in alive(psutil.Process(process.pid).children())
            if child.pid != guard.pid
        )
    )

    process.kill()

    eventually(lambda: not alive(below))
