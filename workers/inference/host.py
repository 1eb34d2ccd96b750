"""The entry point of inference: answers a micro-batch of calls with the models in memory.

Calls that agree share one batch; a call that fails harms no other.
"""

import time
from dataclasses import dataclass, field
from functools import lru_cache, partial
from math import inf
from typing import Any

import msgpack
import numpy as np
import structlog
import torch
from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from app.core.settings import settings
from models import deadline
from models.deadline import Abandoned
from models.operations.core.base import Operation, Params, Rows
from workers import devices
from workers.errors import error_of
from workers.inference.batching import LoadedModel, compute
from workers.inference.model_cache import ModelCache
from workers.inference.model_free_calls import MODEL_FREE_CALLS
from workers.inference.tensors import encode_answers, operation_for, read_inputs, read_params, to_tensors
from workers.store.measurement_cache import attach_inputs

REPLY_SECONDS = 60
"""Lifetime of a reply that nobody fetches because its front end is gone."""
log = structlog.get_logger(__name__)


@dataclass
class PreparedCall:
    """A call with its model, parameters and decoded inputs. `timings`: milliseconds by stage."""

    index: int
    call: dict[str, Any]
    loaded: LoadedModel
    operation: Operation
    params: Params
    inputs: np.ndarray | None
    timings: dict[str, float]
    rows: Rows = field(default_factory=dict)

    @property
    def group(self) -> tuple:
        """Calls with equal groups are computed together."""
        shapes = tuple((name, tensor.shape[1:], tensor.dtype) for name, tensor in self.rows.items())
        return self.loaded.digest, self.operation.name, self.operation.batch_key(self.params), shapes


class Host:
    """Thread-safe; one per process."""

    def __init__(self, limit_bytes: int, device: torch.device):
        self.models = ModelCache(limit_bytes, device)

    def execute(self, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Returns {"answer": ...} or {"problem": ...} for each call, in order."""
        outcomes: list[dict[str, Any]] = [{}] * len(calls)
        prepared = []
        for index, call in enumerate(calls):
            try:
                if call["operation"] in MODEL_FREE_CALLS:
                    outcomes[index] = {"answer": MODEL_FREE_CALLS[call["operation"]](call, self.models)}
                else:
                    prepared.append(self._prepare(index, call))
            except Exception as error:
                outcomes[index] = _problem(error)
        if not prepared:
            return outcomes
        groups: dict[tuple, list[PreparedCall]] = {}
        for each, inputs in zip(prepared, to_tensors([each.inputs for each in prepared]), strict=True):
            try:
                each.rows = each.operation.rows(each.loaded.model, inputs, each.params)
                groups.setdefault(each.group, []).append(each)
            except Exception as error:
                outcomes[each.index] = _problem(error)
        for group in groups.values():
            for each, outcome in zip(group, _outcomes(group), strict=True):
                outcomes[each.index] = outcome
        return outcomes

    def _prepare(self, index: int, call: dict[str, Any]) -> PreparedCall:
        loaded = self.models.get(call["model"])
        operation = operation_for(loaded, call["operation"])
        params = read_params(operation.Params, call["params"])
        if operation.dataset or operation.report is not None:
            attach_inputs(operation, loaded, params)
        start = time.perf_counter()
        max_images = settings().call_images
        inputs = read_inputs(loaded.model, operation, params, call.get("images"), call.get("latents"), max_images)
        return PreparedCall(index, call, loaded, operation, params, inputs, {"decode": _milliseconds(start)})


@lru_cache
def host() -> Host:
    """The host of this process."""
    devices.use_threads(settings().infer_threads)
    return Host(settings().resident_bytes, devices.device())


def execute(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns {"answer": ...} or {"problem": ...} for each call, in order; members: app/core/calls/messages.py."""
    return host().execute(calls)


def run_batch(payload: bytes) -> None:
    """Answers one micro-batch on the reply list that it names. Drops calls past their deadline: nobody waits."""
    message = msgpack.unpackb(payload)
    for call in message["calls"]:
        call["deadline"] = time.monotonic() + call.get("seconds_left", inf)
    calls = [call for call in message["calls"] if call["deadline"] > time.monotonic()]
    if dropped := len(message["calls"]) - len(calls):
        log.info("calls.late", dropped=dropped)
    if calls:
        outcomes = execute(calls)
        reply(message["reply_to"], [{"id": call["id"]} | out for call, out in zip(calls, outcomes, strict=True)])


def reply(key: str, entries: list[dict]) -> None:
    """Pushes answers onto a reply list. Only logs when the broker is gone: the client's connection went with it."""
    try:
        with broker().pipeline(transaction=False) as pipe:
            pipe.rpush(key, msgpack.packb(entries))
            pipe.expire(key, REPLY_SECONDS)
            pipe.execute()
    except RedisError as error:
        log.warning("calls.reply_lost", calls=len(entries), error=type(error).__name__)


@lru_cache
def broker() -> Redis:
    """The broker connections of this process."""
    return Redis.from_url(settings().redis_url, socket_timeout=10, retry=Retry(ExponentialBackoff(1, 0.05), 3))


def _outcomes(group: list[PreparedCall]) -> list[dict[str, Any]]:
    """Answers one group. If that fails, runs each call alone, so that only the faulty one gets a problem."""
    try:
        return [{"answer": answer} for answer in _answers(group)]
    except Exception as error:
        if len(group) == 1 or isinstance(error, Abandoned):
            return [_problem(error)] * len(group)
        log.warning("batch.split", calls=len(group), error=type(error).__name__)
        return [outcome for each in group for outcome in _outcomes([each])]


def _answers(group: list[PreparedCall]) -> list[dict[str, Any]]:
    """Computes and encodes the calls of a group together."""
    start, first = time.perf_counter(), group[0]
    with deadline.checking(partial(check_deadline, max(each.call.get("deadline") or inf for each in group))):
        outputs = compute(first.loaded, first.operation, first.params, [each.rows for each in group])
    results = []
    for each, rows in zip(group, outputs, strict=True):
        result = each.operation.result(each.loaded.model, each.rows, rows, each.params)
        results.append((result, each.call.get("encoding") or "none", each.call.get("grid", False)))
    compute_ms, start = _milliseconds(start), time.perf_counter()
    answers = encode_answers(results)
    timings = {"compute": compute_ms, "encode": _milliseconds(start)}
    return [answer | {"timings": each.timings | timings} for each, answer in zip(group, answers, strict=True)]


def check_deadline(until: float) -> None:
    """Raises Abandoned once the last client has stopped waiting (monotonic clock)."""
    if time.monotonic() > until:
        raise Abandoned("The answer took too long and was given up.")


def _problem(error: Exception) -> dict[str, Any]:
    public = error_of(error)
    if public.status >= 500 and not isinstance(error, Abandoned):
        log.error("call.failed", code=public.code, exc_info=error)
    return {"problem": public.problem()}


def _milliseconds(start: float) -> float:
    return round((time.perf_counter() - start) * 1000, 3)
