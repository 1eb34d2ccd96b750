"""Asks a worker whether a training could begin, before its job is accepted: settings that clash, or that the dataset
cannot serve, are known to the models alone."""

import time
from typing import Any

import structlog
from fastapi import Request

from app.api.jobs.requirements import Data, facts_of
from app.core.calls.client import Call
from app.core.catalog.builtin_datasets import Builtin
from app.core.errors import AnamorphError, InvalidConfig, InvalidDataset

SECONDS = 2.0
"""Without an answer by then the job is accepted, and finds out for itself."""
log = structlog.get_logger(__name__)


async def rehearse(request: Request, spec: dict[str, Any], data: Data) -> None:
    """Raises InvalidConfig or InvalidDataset, with a pointer into the body; not when nobody answers."""
    if not request.app.state.watch.expects_answers():
        return
    try:
        await rehearsed(request, spec, data)
    except (InvalidConfig, InvalidDataset) as error:
        if isinstance(data, Builtin) and data.layout == "attributes" and isinstance(error, InvalidDataset):
            return  # its ages and identities are known when it is imported
        raise
    except AnamorphError as error:
        log.info("rehearsal.skipped", family=spec["family"], code=error.code)


async def rehearsed(request: Request, spec: dict[str, Any], data: Data) -> dict[str, Any]:
    """The config with what the dataset decides filled in. Raises InvalidConfig, InvalidDataset, or what calls raise."""
    params = {"family": spec["family"], "config": spec["config"], "facts": facts_of(data)}
    call = Call(spec["family"], "rehearsal", params, deadline=time.time() + SECONDS)
    try:
        return (await request.app.state.calls.submit(call)).facts["config"]
    except (InvalidConfig, InvalidDataset) as error:
        error.field = f"/{error.field or 'config'}"
        raise
