"""How long the embedded service takes to be ready and to stop, and the memory of each of its processes.

python -m tests.benchmarks.startup
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from app.cli.service_lock import running

ROUNDS = 3


def bench() -> None:
    for number in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), memory=number == ROUNDS - 1)


def measure(data: Path, memory: bool) -> None:
    began = time.monotonic()
    command = [sys.executable, "-m", "app.cli", "up", "--quiet", "--port", "0", "--data", str(data)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    while not (running(data) or {}).get("ready"):
        assert process.poll() is None, "the service did not start"
        time.sleep(0.02)
    ready = time.monotonic() - began
    if memory:
        show_memory(psutil.Process(process.pid))
    stopped = time.monotonic()
    process.terminate()
    process.wait()
    print(f"ready after {ready:.2f} s, stopped in {time.monotonic() - stopped:.2f} s")


def show_memory(supervisor: psutil.Process) -> None:
    """Resident memory, and the part that no other process shares."""
    for process in (supervisor, *supervisor.children(recursive=True)):
        facts = process.memory_full_info()
        words = " ".join(Path(word).name for word in process.cmdline()[:12])
        print(f"{facts.rss / 2**20:7.1f} MiB  ({facts.uss / 2**20:6.1f} own)  {words[:90]}")


if __name__ == "__main__":
    bench()
