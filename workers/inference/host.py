"""The inference host: answers calls with the models in memory, many calls in one batch, none harmed by another."""

import time
from dataclasses import dataclass, field
from functools import lru_cache, partial
from math import inf
from typing import Any

import numpy as np
import structlog
import torch

from app.core.settings import settings
from models import deadline
from models.deadline import Abandoned
from models.operations.core.base import Operation, Params, Rows
from workers import devices
from workers.errors import error_of
from workers.inference.batching import LoadedModel, compute
from workers.inference.calls.apply_perturbation import apply_perturbation
from workers.inference.calls.dataset_images import dataset_images
from workers.inference.calls.validate_training import validate_training
from workers.inference.model_cache import ModelCache
from workers.inference.requests import operation_for, read_inputs, read_params, to_tensors
from workers.inference.responses import encode_answers
from workers.store.measurement_cache import attach_inputs

log = structlog.get_logger(__name__)
MODEL_FREE_CALLS = {
    "dataset_images": dataset_images,
    "apply_perturbation": apply_perturbation,
    "rehearsal": validate_training,
}
"""Operations that need no model, or not always one."""


@dataclass
class Work:
    """One call on its way, and how long each stage took (milliseconds)."""

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
        """Calls of one group are computed together."""
        shapes = tuple((name, tensor.shape[1:], tensor.dtype) for name, tensor in self.rows.items())
        return self.loaded.digest, self.operation.name, self.operation.batch_key(self.params), shapes


class Host:
    """Thread-safe; one per process."""

    def __init__(self, limit_bytes: int, device: torch.device):
        self.models = ModelCache(limit_bytes, device)

    def execute(self, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """For each call {"answer": ...} or {"problem": ...}, in order."""
        outcomes: list[dict[str, Any]] = [{}] * len(calls)
        works = []
        for index, call in enumerate(calls):
            try:
                if call["operation"] in MODEL_FREE_CALLS:
                    outcomes[index] = {"answer": MODEL_FREE_CALLS[call["operation"]](call, self.models)}
                else:
                    works.append(self._open(index, call))
            except Exception as error:
                outcomes[index] = _problem(error)
        groups: dict[tuple, list[Work]] = {}
        for work, inputs in zip(works, to_tensors([work.inputs for work in works]), strict=True):
            try:
                work.rows = work.operation.rows(work.loaded.model, inputs, work.params)
                groups.setdefault(work.group, []).append(work)
            except Exception as error:
                outcomes[work.index] = _problem(error)
        for group in groups.values():
            for work, outcome in zip(group, _outcomes(group), strict=True):
                outcomes[work.index] = outcome
        return outcomes

    def _open(self, index: int, call: dict[str, Any]) -> Work:
        loaded = self.models.get(call["model"])
        operation = operation_for(loaded, call["operation"])
        params = read_params(operation.Params, call["params"])
        attach_inputs(operation, loaded, params)
        most, start = settings().call_images, time.perf_counter()
        inputs = read_inputs(loaded.model, operation, params, call.get("images"), call.get("latents"), most)
        return Work(index, call, loaded, operation, params, inputs, {"decode": _milliseconds(start)})


@lru_cache
def host() -> Host:
    """This process's host."""
    devices.use_threads(settings().infer_threads)
    return Host(settings().resident_bytes, devices.device())


def execute(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each call {"answer": ...} or {"problem": ...}, in order. See app/core/calls/messages.py for their members."""
    return host().execute(calls)


def _outcomes(works: list[Work]) -> list[dict[str, Any]]:
    """Answers one group. When that fails, each call is tried alone, so that only the guilty one has a problem."""
    try:
        return [{"answer": answer} for answer in _answers(works)]
    except Exception as error:
        if len(works) == 1 or isinstance(error, Abandoned):
            return [_problem(error)] * len(works)
        log.warning("batch.split", calls=len(works), error=type(error).__name__)
        return [outcome for work in works for outcome in _outcomes([work])]


def _answers(works: list[Work]) -> list[dict[str, Any]]:
    """Calls that agree, computed and encoded together."""
    start, first = time.perf_counter(), works[0]
    with deadline.checking(partial(in_time, max(work.call.get("deadline") or inf for work in works))):
        found = compute(first.loaded, first.operation, first.params, [work.rows for work in works])
    asked = []
    for work, part in zip(works, found, strict=True):
        result = work.operation.result(work.loaded.model, work.rows, part, work.params)
        asked.append((result, work.call.get("encoding") or "none", work.call.get("grid", False)))
    spent, start = _milliseconds(start), time.perf_counter()
    answers = encode_answers(asked)
    timings = {"compute": spent, "encode": _milliseconds(start)}
    return [answer | {"timings": work.timings | timings} for work, answer in zip(works, answers, strict=True)]


def in_time(expiry: float) -> None:
    """Raises Abandoned when the last client to wait has gone: the next one shall not wait for what nobody reads."""
    if time.time() > expiry:
        raise Abandoned("The answer took too long and was given up.")


def _problem(error: Exception) -> dict[str, Any]:
    known = error_of(error)
    if known.status >= 500 and not isinstance(error, Abandoned):
        log.error("call.failed", code=known.code, exc_info=error)
    return {"problem": known.problem()}


def _milliseconds(start: float) -> float:
    return round((time.perf_counter() - start) * 1000, 3)
