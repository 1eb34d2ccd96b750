"""A spare process of a slot: it has imported torch and our modules, and waits on its standard input for a job.

The job comes as one line of JSON: its id and the environment of its process. Without a line, when its slot is gone,
the spare ends.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import structlog

from app.core.settings import settings

log = structlog.get_logger(__name__)

SPARE = "--spare"
"""In place of the id of a job on the command line."""
PAUSE_SECONDS = 60
"""Before the next spare, where one ended by itself."""


class Spares:
    """Keeps one spare process, or none. Used by one thread, which must live as long as the processes."""

    def __init__(self, command: Sequence[str]):
        self.command = command
        self.process: subprocess.Popen | None = None
        self.not_before = 0.0

    def keep(self, environment: dict[str, str]) -> None:
        """Starts a spare process unless there is one."""
        if self.process is not None and self.process.poll() is not None:
            log.warning("spare_ended", status=self.process.returncode)
            self._forget()
            self.not_before = time.monotonic() + PAUSE_SECONDS
        if self.process is None and time.monotonic() >= self.not_before:
            self.process = subprocess.Popen(
                [*self.command, SPARE], env=environment, stdin=subprocess.PIPE, close_fds=True
            )

    def start(self, job_id: str, environment: dict[str, str]) -> subprocess.Popen:
        """The process of a job: the spare one, or a new one."""
        process, self.process = self.process, None
        if process is not None:
            try:
                with process.stdin:
                    process.stdin.write(json.dumps({"job": job_id, "environment": environment}).encode() + b"\n")
                return process
            except OSError:  # it has ended
                process.wait()
        return subprocess.Popen([*self.command, job_id], env=environment, stdin=subprocess.DEVNULL, close_fds=True)

    def close(self) -> None:
        """Ends the spare process."""
        if self.process is not None:
            self.process.kill()
            self._forget()

    def _forget(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process = None


def wait_for_job() -> str:
    """In the spare process: the id of the job, whose environment is now that of this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the supervisor
    os.nice(int(os.environ.pop("ANAMORPH_JOB_NICE", 0)))
    warm_up()
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        sys.exit(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    message = json.loads(line)
    os.environ.clear()
    os.environ.update({name: value for name, value in message["environment"].items() if name != "ANAMORPH_JOB_NICE"})
    settings.cache_clear()
    return message["job"]


def warm_up() -> None:
    """Imports what a training needs, and makes one update of a small network, except with a build for CUDA.

    There the first backward pass counts the GPUs, and the driver reads CUDA_VISIBLE_DEVICES once: before the job has
    brought its own.
    """
    import torch

    from models.registry import families
    from workers import devices

    families()
    devices.keep_dynamo_out()
    if torch.backends.cuda.is_built():
        return
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.LazyLinear(1))
    output = network(torch.zeros(2, 1, 8, 8))
    optimiser = torch.optim.Adam(network.parameters(), fused=True)
    output.sum().backward()
    optimiser.step()
