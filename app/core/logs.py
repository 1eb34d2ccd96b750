"""Logs of every process: one event per line on stderr, plain or JSON. Never local variables, URLs or bodies."""

import logging
import sys

import structlog

from app.core.settings import settings


def configure(stream=None) -> None:
    """Sets up structlog and the standard library's logging the same way."""
    options = settings()
    level = logging.getLevelNamesMapping().get(options.log_level.upper(), logging.INFO)
    stream = stream or sys.stderr
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
