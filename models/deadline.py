"""How long is a computation waited for? Whoever starts one says so; loops that may be long ask on their way."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from models.types import ModelError

Check = Callable[[], None]
_CHECK: ContextVar[Check | None] = ContextVar("check", default=None)


class Abandoned(ModelError):
    """Nobody waits for the answer any longer."""

    code = "deadline-exceeded"


@contextmanager
def watched(check: Check) -> Iterator[None]:
    """What is computed inside asks `check` now and then, which raises to end it."""
    token = _CHECK.set(check)
    try:
        yield
    finally:
        _CHECK.reset(token)


def ask() -> None:
    """Raises what the watcher raises, if there is one."""
    if (check := _CHECK.get()) is not None:
        check()
