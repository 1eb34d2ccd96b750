"""Deadlines and interruptions of long computations: the caller sets a check, long loops call `check()`.

The check may also let another computation run before it returns, so a computation keeps no state on a shared network
across a call of `check()`, unless it is `uninterrupted()`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from models.types import ModelError

Check = Callable[[], None]
CHECK: ContextVar[Check | None] = ContextVar("check", default=None)
"""What `check()` calls in this thread."""


class Abandoned(ModelError):
    """The computation was stopped because nobody waits for the answer."""

    code = "deadline-exceeded"


@contextmanager
def checking(check: Check | None) -> Iterator[None]:
    """Inside, `deadline.check()` calls `check`, which raises to stop the computation."""
    token = CHECK.set(check)
    try:
        yield
    finally:
        CHECK.reset(token)


def check() -> None:
    """Call the check of the caller, if there is one. Raises what it raises."""
    if (current := CHECK.get()) is not None:
        current()


def uninterrupted():
    """Context in which `check()` does nothing, for a short section that keeps state on a shared network."""
    return checking(None)


def resume() -> None:
    """Waits, in a `paused()` section, until this computation may use the device again."""
    if (take := getattr(CHECK.get(), "take", None)) is not None:
        take()


@contextmanager
def paused() -> Iterator[None]:
    """Lets other computations run inside: for waiting, and for long work that uses neither model nor device."""
    pause = getattr(CHECK.get(), "paused", None)
    if pause is None:
        yield
        return
    with pause():
        yield
