"""What the operating system says: CPU time of processes, kills for lack of memory, sleep and jumps of clocks."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int, session: bool = False) -> float | None:
    """CPU time of a process, or of all in its session with the children they have buried; None if it cannot be read."""
    if sys.platform != "linux":
        return _cpu_of_ps(pid)
    if not session:
        found = _stat(PROC / str(pid))
        return None if found is None else found[1]
    stats = [stat for entry in PROC.iterdir() if entry.name.isdecimal() and (stat := _stat(entry))]
    return sum(seconds for leader, seconds in stats if leader == pid)


def _stat(folder: Path) -> tuple[int, float] | None:
    """(session, CPU seconds) of one process."""
    try:
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[3]), sum(map(int, fields[11:15])) / TICKS  # utime, stime, cutime, cstime


def _cpu_of_ps(pid: int) -> float | None:
    words = subprocess.run(["ps", "-o", "time=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    seconds = 0.0
    for part in re.split("[-:]", words) if words else ():
        seconds = seconds * 60 + float(part)
    return seconds if words else None


def oom_kills() -> int:
    """Processes that the kernel has killed for lack of memory, in this control group or else on this machine."""
    for line in _read(PROC / "self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            folder = CGROUPS / controllers
            name = "memory.oom_control" if controllers else "memory.events"
            for file in (folder / path.lstrip("/") / name, folder / name):
                if found := re.search(r"^oom_kill (\d+)$", _read(file), re.MULTILINE):
                    return int(found[1])
    found = re.search(r"^oom_kill (\d+)$", _read(PROC / "vmstat"), re.MULTILINE)
    return int(found[1]) if found else 0


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


class Clocks:
    """Compares the database's clock with those of this machine from look to look, to find out why time is missing."""

    SLEEP = time.CLOCK_BOOTTIME if hasattr(time, "CLOCK_BOOTTIME") else time.CLOCK_MONOTONIC

    def __init__(self, limit_seconds: float):
        self.limit = limit_seconds
        self.failed = False  # set by whoever could not look, because the database did not answer
        self.last: tuple[float, float, float] | None = None

    def look(self, database: float) -> str | None:
        """Takes the database's time; returns why more than the limit has passed since the last look, None if not.

        clock-jumped: the database's clock was set. machine-slept: this machine slept. database-outage: looks failed.
        process-stalled: this process did not run.
        """
        now = database, time.clock_gettime(self.SLEEP), time.monotonic()
        before, self.last = self.last, now
        failed, self.failed = self.failed, False
        if before is None:
            return None
        passed, real, awake = (new - old for new, old in zip(now, before, strict=True))
        if abs(passed - real) > self.limit:
            return "clock-jumped"
        if real <= self.limit:
            return None
        if real - awake > self.limit / 2:
            return "machine-slept"
        return "database-outage" if failed else "process-stalled"
