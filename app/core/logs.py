"""Logs of every process: one event per line on stderr, plain or JSON. Never local variables, URLs or bodies."""

import contextlib
import logging
import sys
from typing import TextIO

import structlog

from app.core.settings import settings


class Lossy:
    """A stream that drops what cannot be written, as on a full disk or a closed pipe."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            return self.stream.write(text)
        return 0

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.stream.flush()

    def isatty(self) -> bool:
        return self.stream.isatty()


def configure(stream=None) -> None:
    """Sets up structlog and the standard library's logging the same way."""
    options = settings()
    level = logging.getLevelNamesMapping().get(options.log_level.upper(), logging.INFO)
    stream = Lossy(stream or sys.stderr)
    logging.raiseExceptions = False  # a line that cannot be written is lost without a traceback
    shared = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if options.log_json:
        last = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        plain = structlog.dev.plain_traceback
        last = [structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=plain)]
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    clean = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler = logging.StreamHandler(stream)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processors=[clean, *last], foreign_pre_chain=shared))
    logging.basicConfig(level=max(level, logging.INFO), handlers=[handler], force=True)
    for noisy in ("alembic", "httpx", "kombu", "amqp"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
