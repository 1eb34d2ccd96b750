"""Deadlines for long computations: the caller sets a check, long loops call `check()`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from models.types import ModelError

Check = Callable[[], None]
_CHECK: ContextVar[Check | None] = ContextVar("check", default=None)


class Abandoned(ModelError):
    """The computation was stopped because nobody waits for the answer."""

    code = "deadline-exceeded"


@contextmanager
def checking(check: Check) -> Iterator[None]:
    """Inside, `deadline.check()` calls `check`, which raises to stop the computation."""
    token = _CHECK.set(check)
    try:
        yield
    finally:
        _CHECK.reset(token)


def check() -> None:
    """Call the check of the caller, if there is one. Raises what it raises."""
    if (current := _CHECK.get()) is not None:
        current()
