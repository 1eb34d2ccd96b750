"""Ends the processes of a service whose supervisor has ended without stopping them (kill -9, out of memory).

This file runs as a script in its own session. The `Guard` of the supervisor holds the other end of standard input and
writes `+PID` for each process group that starts and `-PID` for each that ends; end of file means that the supervisor
has ended. Unlike a death signal of the kernel this works on macOS, reaches grandchildren, and kills what ignores TERM.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable

GRACE_SECONDS = 1.2


def surviving_groups(lines: Iterable[str]) -> set[int]:
    """Process groups that were started and not reported ended."""
    groups: set[int] = set()
    for line in lines:
        (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
    return groups


def send(groups: set[int], number: int) -> set[int]:
    """Signals every group; returns those that still exist. Signal 0 only asks."""
    alive = set()
    for group in groups:
        try:
            os.killpg(group, number)
            alive.add(group)
        except ProcessLookupError:
            pass
        except PermissionError:  # on macOS, for a group of zombies
            pass
    return alive


def end(groups: set[int], grace_seconds: float = GRACE_SECONDS) -> None:
    deadline = time.monotonic() + grace_seconds
    groups = send(groups, signal.SIGTERM)
    while groups and time.monotonic() < deadline:
        time.sleep(0.05)
        groups = send(groups, 0)
    send(groups, signal.SIGKILL)


class Guard:
    """The supervisor's side: the process groups to end with it, and the process that ends them."""

    def __init__(self):
        self.groups: set[int] = set()
        self.process: subprocess.Popen | None = None
        self.tend()

    def tend(self) -> None:
        """Restarts the guard process if it has ended."""
        if self.process is None or self.process.poll() is not None:
            command = [sys.executable, "-I", "-S", __file__]
            pipe = {"stdin": subprocess.PIPE, "text": True, "bufsize": 1}
            self.process = subprocess.Popen(command, start_new_session=True, **pipe)
            for group in self.groups:
                self.process.stdin.write(f"+{group}\n")

    def add(self, group: int) -> None:
        self.groups.add(group)
        self._tell(f"+{group}\n")

    def remove(self, group: int) -> None:
        self.groups.discard(group)
        self._tell(f"-{group}\n")

    def _tell(self, line: str) -> None:
        try:
            self.process.stdin.write(line)
        except BrokenPipeError:
            self.process.wait()
            self.tend()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


if __name__ == "__main__":
    end(surviving_groups(sys.stdin))
