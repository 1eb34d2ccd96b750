"""Supervises the processes of a service: starts them in order, waits until they are ready, restarts and stops them."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from app.cli.logs import Logs
from app.cli.watchdog import Guard, send
from app.core.machine import cpu_seconds

POLL_SECONDS = 0.05
SLOW_SECONDS = 20
"""Seconds after which a start that is not over is reported, and again after each further such time."""
IDLE_SECONDS = 120
"""Seconds without CPU time after which a part that is not ready counts as hung."""
DEATHS, DEATHS_WINDOW_SECONDS = 5, 60
LONGEST_BACKOFF_SECONDS = 30


class GaveUp(Exception):
    """A part cannot be kept running; the message says which, and where its log is."""


@dataclass(frozen=True)
class Part:
    """A process to keep running. `ready` takes its id; a part with `first` must be ready before the next one starts."""

    name: str
    command: Sequence[str]
    ready: Callable[[int], bool]
    first: bool = False
    grace_seconds: float = 10
    descriptors: tuple[int, ...] = ()


class Child:
    """A part and its present process."""

    def __init__(self, part: Part, logs: Logs, guard: Guard):
        self.part, self.logs, self.guard = part, logs, guard
        self.process: subprocess.Popen | None = None
        self.deaths: list[float] = []
        self.start_at = 0.0
        self.cpu: float | None = None
        self.worked_at = 0.0

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.part.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C in the terminal reaches only the supervisor
            pass_fds=self.part.descriptors,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        self.guard.add(self.process.pid)
        Thread(target=self.logs.follow, args=(self.part.name, self.process.stdout), daemon=True).start()

    def works(self) -> bool:
        """Whether its processes have used CPU time within IDLE_SECONDS; true also where that cannot be read."""
        cpu, now = cpu_seconds(self.process.pid, session=True), time.monotonic()
        if cpu is None or cpu != self.cpu:
            self.cpu, self.worked_at = cpu, now
        return now - self.worked_at < IDLE_SECONDS

    def died(self) -> bool:
        """True once for each end of the process. The rest of its process group is killed."""
        if self.process is None or self.process.poll() is None:
            return False
        self.bury()
        return True

    def bury(self) -> None:
        process, self.process = self.process, None
        send({process.pid}, signal.SIGKILL)
        self.guard.remove(process.pid)
        self.status = process.wait()

    def plan_restart(self) -> float:
        """Seconds to wait before the next start. Raises GaveUp when the process ends too often."""
        now = time.monotonic()
        self.deaths = [death for death in self.deaths if now - death < DEATHS_WINDOW_SECONDS] + [now]
        if len(self.deaths) >= DEATHS:
            raise GaveUp(f"{self.part.name} ended {DEATHS} times within {DEATHS_WINDOW_SECONDS} s; see {self.log}.")
        pause = min(2.0 ** (len(self.deaths) - 1), LONGEST_BACKOFF_SECONDS)
        self.start_at = now + pause
        return pause

    @property
    def log(self) -> Path:
        return self.logs.path(self.part.name)


class Supervisor:
    """`run()` blocks until a signal (status 0) or until a part cannot be kept alive (status 1).

    A start may take `ready_seconds`; 0: as long as the processes live and use the CPU.
    """

    def __init__(self, parts: Sequence[Part], logs: Logs, ready_seconds: float = 0):
        self.logs, self.ready_seconds = logs, ready_seconds
        self.guard = Guard()
        self.children = [Child(part, logs, self.guard) for part in parts]
        self.stop_requests = 0

    def run(self, when_ready: Callable[[], None]) -> int:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._request_stop)
        try:
            self._start()
            if not self.stop_requests:
                when_ready()
            while not self.stop_requests:
                self._tend()
                time.sleep(POLL_SECONDS)
            return 0
        except GaveUp as reason:
            self.logs.say(str(reason))
            return 1
        finally:
            self._stop()

    def _request_stop(self, *_) -> None:
        self.stop_requests += 1

    def _start(self) -> None:
        unready = []
        for child in self.children:
            child.start()
            unready.append(child)
            if child.part.first:
                unready = self._wait(unready)
        self._wait(unready)

    def _wait(self, unready: list[Child]) -> list[Child]:
        began, reported = time.monotonic(), 0.0
        while unready and not self.stop_requests:
            for child in self.children:
                if child.process is not None and child.died():
                    raise GaveUp(f"{child.part.name} ended with status {child.status} while starting; see {child.log}.")
            unready = [child for child in unready if not child.part.ready(child.process.pid)]
            if unready and (passed := time.monotonic() - began) > reported + SLOW_SECONDS:
                reported = passed
                self._report_slow(unready, passed)
            if unready and 0 < self.ready_seconds < passed:
                names = ", ".join(child.part.name for child in unready)
                raise GaveUp(f"Not ready after {self.ready_seconds:g} s: {names}; see {unready[0].log}.")
            time.sleep(POLL_SECONDS)
        return unready

    def _report_slow(self, unready: list[Child], passed: float) -> None:
        """Says which parts are still starting. Raises GaveUp when one of them does nothing."""
        for child in unready:
            if self.ready_seconds == 0 and not child.works():
                raise GaveUp(
                    f"{child.part.name} is not ready and has done nothing for {IDLE_SECONDS} s; see {child.log}."
                )
            self.logs.say(f"{child.part.name} is still starting after {passed:.0f} s.")

    def _tend(self) -> None:
        self.guard.tend()
        for child in self.children:
            if child.died():
                pause = child.plan_restart()
                self.logs.say(f"{child.part.name} ended with status {child.status}; it starts again in {pause:.0f} s.")
            elif child.process is None and time.monotonic() >= child.start_at:
                child.start()

    def _stop(self) -> None:
        for child in reversed(self.children):
            if child.process is None:
                continue
            child.process.terminate()
            deadline = time.monotonic() + child.part.grace_seconds
            while child.process.poll() is None and time.monotonic() < deadline and self.stop_requests < 2:
                time.sleep(POLL_SECONDS)
            child.bury()
        self.guard.close()
