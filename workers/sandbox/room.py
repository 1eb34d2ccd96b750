"""A room: a child process with limits in which functions work on foreign bytes and graphs, called as if they were here.

    room = Room("workers.codecs.sealed")               # the module whose functions it offers
    pixels = room.call("decode", data, seconds=2)      # plain values, bytes and numpy arrays go in and come out

The child is started fresh, imports the module (and calls its `prepare()`, if it has one, to load what it needs from
files), and then gives up files, network, other processes and memory above ANAMORPH_SANDBOX_BYTES (limits.py). Its
environment has no settings and no secrets; its working folder is empty and nothing can be made in it. So a function
cannot import anything, open anything or log; a module that is used in a room imports all it needs at its top.
A child that is late, breaks, or whose caller gives up is killed with its group, and the next one is started at once.
"""

import fcntl
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import structlog

from app.core.errors import DeadlineExceeded, InvalidRequest, OutOfMemory, Unavailable
from app.core.settings import settings
from workers.sandbox import pipe
from workers.sandbox.child import OUT_OF_MEMORY

TICK_SECONDS = 0.02
"""How often a waiting call asks whether anybody still waits for it."""
PIPE_BYTES = 1 << 20
PASSED_ON = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH")
"""The only variables of the environment that a child sees."""
ROOT = str(Path(__file__).parents[2])
log = structlog.get_logger(__name__)
# The kernel kills a child when the thread that started it ends, so one thread that lives as long as the process
# starts them all.
starter = ThreadPoolExecutor(1, thread_name_prefix="rooms")


class Late(DeadlineExceeded):
    """The function did not end in time."""


class NeedsMemory(InvalidRequest):
    """The function needs more memory than a room has."""


class Broken(InvalidRequest):
    """The function ended its process."""


class Raised(InvalidRequest):
    """The function raised an exception: its class is named `kind`, its text is `detail`."""

    def __init__(self, kind: str, text: str):
        super().__init__(text)
        self.kind = kind


class Room:
    """Thread-safe; one call at a time. `first`: a function and its arguments that every new child runs before its
    first call, such as loading a file. `memory`: bytes of address space, by default ANAMORPH_SANDBOX_BYTES.
    `answer_bytes`: the largest answer that is taken, by default a quarter of `memory`."""

    def __init__(
        self,
        module: str,
        first: tuple[Any, ...] | None = None,
        memory: int | None = None,
        answer_bytes: int | None = None,
    ):
        self.module, self.first = module, first
        self.memory = memory or settings().sandbox_bytes
        self.answer_bytes = answer_bytes or self.memory // 4
        self.sealed: bool | None = None
        self._lock = threading.Lock()
        self._child: list[Future[Child]] = []  # none before the first call and after `close`, else one
        self._ready = False
        weakref.finalize(self, _end, self._child)

    def call(self, function: str, *arguments: Any, seconds: float | None = None) -> Any:
        """The function's result. `seconds`: its longest time, at most ANAMORPH_SANDBOX_SECONDS, which is the default;
        while it runs, `models.deadline.check()` is called, which may end it earlier, and
        after TICK_SECONDS the caller's neighbours compute (`models.deadline.paused()`).

        Raises Late, NeedsMemory, Broken, Raised; OutOfMemory if the system killed the child; Unavailable if no child
        starts.
        """
        allowed = settings().sandbox_seconds if seconds is None else min(seconds, settings().sandbox_seconds)
        until = time.monotonic() + allowed
        _check(until)
        if not self._lock.acquire(timeout=TICK_SECONDS):
            with _paused():
                while not self._lock.acquire(timeout=TICK_SECONDS):
                    _check(until)
        try:
            child = self._started(until)
            if self.first and not self._ready:
                self._exchange(child, self.first[0], self.first[1:], until)
            self._ready = True
            return self._exchange(child, function, arguments, until)
        except Late as error:
            if error.detail:  # of the caller's own check
                raise
            raise Late(
                f"The computation did not end within {allowed:.3g} s.",
                remedy="Use a network or a file that needs less time.",
            ) from None
        finally:
            self._lock.release()

    def open(self) -> None:
        """Starts the child in the background, so that the first call finds it ready."""
        with self._lock:
            self._start()

    def close(self) -> None:
        """Ends the child. A later call starts another."""
        with self._lock:
            self._end()

    def close_if_idle(self) -> bool:
        """Ends the child unless a call is under way; whether no child is left."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            self._end()
            return True
        finally:
            self._lock.release()

    @property
    def pid(self) -> int | None:
        """The child's number, once it runs."""
        return self._child[0].result().process.pid if self._child else None

    def _started(self, until: float) -> "Child":
        self._start()
        try:
            child = self._child[0].result()
            if not child.greeted:
                hello = child.receive(until, 1 << 16, _check)
                child.greeted, self.sealed = True, hello["sealed"]
                if not self.sealed:
                    log.warning("room.not_sealed", module=self.module, why="no seccomp: files and network are open")
            return child
        except (OSError, EOFError, pipe.Damaged) as error:
            self._end()
            log.error("room.not_started", module=self.module, error=repr(error))
            raise Unavailable("No sealed process could be started on the worker.", retry_after=5) from error

    def _start(self) -> None:
        if not self._child:
            self._ready = False
            self._child.append(starter.submit(Child, self.module, self.memory))

    def _end(self) -> None:
        _end(self._child)

    def _exchange(self, child: "Child", function: str, arguments: tuple[Any, ...], until: float) -> Any:
        try:
            seconds = max(0.0, until - time.monotonic()) * (os.cpu_count() or 1)
            child.send([function, list(arguments), seconds], until, _check)
            answer = child.receive(until, self.answer_bytes, _check)
        except BaseException as error:
            status = child.ended() if isinstance(error, EOFError | BrokenPipeError) else None
            self._end()
            self._start()
            log.warning("room.replaced", module=self.module, function=function, error=repr(error), status=status)
            if isinstance(error, pipe.Damaged):
                raise NeedsMemory(f"The answer has more than {self.answer_bytes} bytes, or is damaged.") from error
            if isinstance(error, EOFError | BrokenPipeError):
                raise _broken(status, self.memory) from error
            raise
        if "memory" in answer:
            self._end()  # memory that is short once stays in pieces
            self._start()
            raise _needs_memory(self.memory)
        if "error" in answer:
            raise Raised(str(answer["error"]), str(answer.get("text")))
        return answer.get("value")


class Child:
    """One child process and its two pipes."""

    def __init__(self, module: str, memory: int):
        calls, self.calls = os.pipe()
        self.answers, answers = os.pipe()
        for descriptor in (self.calls, self.answers):
            os.set_blocking(descriptor, False)
            if sys.platform == "linux":
                with suppress(OSError):  # a user's share of such memory is limited
                    fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self.greeted = False
        self.folder = tempfile.mkdtemp(prefix="anamorph-room-")
        options = {"parent": os.getpid(), "memory": memory, "calls": calls, "answers": answers}
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "workers.sandbox.child", module,
                 *(f"--{name}={value}" for name, value in options.items())],
                cwd=self.folder, env=environment(), pass_fds=(calls, answers), start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        finally:
            os.close(calls)
            os.close(answers)

    def send(self, value: Any, until: float, check: Callable[[float], None]) -> None:
        for buffer in pipe.pack(value):
            while buffer:
                self._wait(self.calls, select.POLLOUT, until, check)
                with suppress(BlockingIOError):
                    buffer = buffer[os.write(self.calls, buffer[:PIPE_BYTES]) :]

    def receive(self, until: float, limit: int, check: Callable[[float], None]) -> Any:
        def fill(buffer: memoryview) -> None:
            while buffer:
                self._wait(self.answers, select.POLLIN, until, check)
                count = os.readv(self.answers, [buffer])
                if count == 0:
                    raise EOFError("the child ended")
                buffer = buffer[count:]

        return pipe.read(fill, limit)

    @staticmethod
    def _wait(descriptor: int, events: int, until: float, check: Callable[[float], None]) -> None:
        poll = select.poll()
        poll.register(descriptor, events)
        if not poll.poll(TICK_SECONDS * 1000):
            with _paused():
                while not poll.poll(TICK_SECONDS * 1000):
                    check(until)

    def ended(self) -> int | None:
        """The exit status of a child that closed its pipe."""
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(5)
        return None

    def kill(self) -> None:
        if self.process.poll() is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
        for descriptor in (self.calls, self.answers):
            os.close(descriptor)
        with suppress(OSError):  # the child removes it when it is ready
            os.rmdir(self.folder)


def environment() -> dict[str, str]:
    """The environment of a child: where programs and our code are, the language, and one thread per library."""
    path = os.pathsep.join([ROOT, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))])
    own = {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
           "MALLOC_ARENA_MAX": "2"}  # fmt: skip
    return {name: os.environ[name] for name in PASSED_ON if name in os.environ} | own


def _end(children: list[Future[Child]]) -> None:
    while children:
        with suppress(Exception):  # one that did not start
            children.pop().result().kill()


def _check(until: float) -> None:
    """Raises Late after `until` (monotonic seconds), and what `models.deadline.check` raises if the caller has one."""
    if time.monotonic() > until:
        raise Late
    if deadline := sys.modules.get("models.deadline"):  # who sets one has imported it, and torch with it
        deadline.check()


def _paused() -> AbstractContextManager:
    """Lets the caller's neighbours compute inside (`models.deadline.paused`)."""
    deadline = sys.modules.get("models.deadline")
    return deadline.paused() if deadline else nullcontext()


def _needs_memory(limit: int) -> NeedsMemory:
    return NeedsMemory(
        f"The computation needs more than {limit / (1 << 30):.3g} GiB of memory.",
        remedy="Use a smaller network, file or image, or raise ANAMORPH_SANDBOX_BYTES on the worker.",
    )


def _broken(status: int | None, limit: int) -> Exception:
    if status == -signal.SIGXCPU:
        return Late()
    if status == -signal.SIGKILL:
        return OutOfMemory("The system ended the sealed process, probably for lack of memory.", retry_after=5)
    if status in (-signal.SIGABRT, OUT_OF_MEMORY):  # C++ libraries abort when they cannot allocate
        return _needs_memory(limit)
    how = "ended" if status is None or status >= 0 else f"was killed by signal {-status}"
    return Broken(f"The process that ran the computation {how}.", remedy="The file is damaged or made to do harm.")
