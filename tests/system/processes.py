"""What the system tests ask about processes and wait for."""

import subprocess
import time
from collections.abc import Callable

import psutil


def eventually(truth: Callable[[], object], seconds: float = 120) -> object:
    """The first true answer of `truth`; fails the test after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (answer := truth()):
        assert time.monotonic() < deadline, f"still not so after {seconds} s: {truth}"
        time.sleep(0.05)
    return answer


def descendants(pid: int) -> list[psutil.Process]:
    """Every process below `pid`, in whatever session."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; a zombie waits for its parent only."""
    return [process for process in processes if _runs(process)]


def command(process: psutil.Process) -> str:
    """Its command line; empty for one that ended while it was asked."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def end(process: subprocess.Popen, seconds: float = 60) -> int:
    """Stops what a test started, by TERM and then by force."""
    process.terminate()
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
