"""The inference host: answers calls with the models in memory, many calls in one batch, none harmed by another."""

import time
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import structlog
import torch

from app.core.settings import settings
from models.operations.core import Operation, Params, Result, Rows
from workers import devices
from workers.answers import encode_answer
from workers.batches import Resident, compute
from workers.lifecycle import error_of
from workers.requests import operation_for, read_inputs, read_params
from workers.residents import Residents
from workers.views import dataset_images

log = structlog.get_logger(__name__)
PSEUDO = {"dataset_images": dataset_images}
"""Operations that need no model."""


@dataclass
class Work:
    """One call on its way: its rows, what was found for them, and how long each stage took (milliseconds)."""

    call: dict[str, Any]
    resident: Resident
    operation: Operation
    params: Params
    rows: Rows
    timings: dict[str, float] = field(default_factory=dict)
    result: Result | None = None

    @property
    def group(self) -> tuple:
        """Calls of one group are computed together."""
        shapes = tuple((name, tensor.shape[1:], tensor.dtype) for name, tensor in self.rows.items())
        return self.resident.digest, self.operation.name, self.operation.agreement(self.params), shapes


class Host:
    """Thread-safe; one per process."""

    def __init__(self, limit_bytes: int, device: torch.device):
        self.residents = Residents(limit_bytes, device)

    def execute(self, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """For each call {"answer": ...} or {"problem": ...}, in order."""
        outcomes: list[dict[str, Any]] = [{}] * len(calls)
        groups: dict[tuple, list[tuple[int, Work]]] = {}
        for index, call in enumerate(calls):
            try:
                if call["operation"] in PSEUDO:
                    outcomes[index] = {"answer": PSEUDO[call["operation"]](call)}
                else:
                    work = self._prepare(call)
                    groups.setdefault(work.group, []).append((index, work))
            except Exception as error:
                outcomes[index] = _problem(error)
        for members in groups.values():
            indices, works = zip(*members, strict=True)
            for index, outcome in zip(indices, _answer(list(works)), strict=True):
                outcomes[index] = outcome
        return outcomes

    def _prepare(self, call: dict[str, Any]) -> Work:
        resident = self.residents.get(call["model"])
        operation = operation_for(resident.model, call["operation"])
        params = read_params(operation.Params, call["params"])
        start = time.perf_counter()
        inputs = read_inputs(resident.model, operation, params, call.get("images"), call.get("latents"))
        rows = operation.rows(resident.model, inputs, params)
        return Work(call, resident, operation, params, rows, {"decode": _milliseconds(start)})


@lru_cache
def host() -> Host:
    """This process's host."""
    devices.use_threads(settings().infer_threads)
    return Host(settings().resident_bytes, devices.device())


def execute(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each call {"answer": ...} or {"problem": ...}, in order. See app/core/envelope.py for their members."""
    return host().execute(calls)


def _answer(works: list[Work]) -> list[dict[str, Any]]:
    """Computes one group. When that fails, each call is tried alone, so that only the guilty one has a problem."""
    try:
        compute_group(works)
    except Exception as error:
        if len(works) > 1:
            log.warning("batch.split", calls=len(works), error=type(error).__name__)
            return [outcome for work in works for outcome in _answer([work])]
        return [_problem(error)]
    return [_encoded(work) for work in works]


def compute_group(works: list[Work]) -> None:
    """Fills in the results of works that agree."""
    start, first = time.perf_counter(), works[0]
    found = compute(first.resident, first.operation, first.params, [work.rows for work in works])
    spent = _milliseconds(start)
    for work, part in zip(works, found, strict=True):
        work.result = work.operation.result(work.resident.model, work.rows, part, work.params)
        work.timings["compute"] = spent


def _encoded(work: Work) -> dict[str, Any]:
    start, call = time.perf_counter(), work.call
    try:
        answer = encode_answer(work.result, call.get("encoding") or "none", call.get("grid", False))
    except Exception as error:
        return _problem(error)
    return {"answer": answer | {"timings": work.timings | {"encode": _milliseconds(start)}}}


def _problem(error: Exception) -> dict[str, Any]:
    known = error_of(error)
    if known.status >= 500:
        log.error("call.failed", code=known.code, exc_info=error)
    return {"problem": known.problem()}


def _milliseconds(start: float) -> float:
    return round((time.perf_counter() - start) * 1000, 3)
