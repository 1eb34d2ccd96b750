"""The entry point of inference: answers a micro-batch of calls with the models in memory.

Calls that agree share one batch; a call that fails harms no other. Which thread computes when: lane.py.
"""

import time
from dataclasses import dataclass, field
from functools import lru_cache
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
from workers.inference.lane import Lane, Turn, reply
from workers.inference.model_cache import ModelCache
from workers.inference.model_free_calls import MODEL_FREE_CALLS
from workers.inference.tensors import encode_answers, operation_for, read_inputs, read_params, to_tensors
from workers.store.measurement_cache import attach_inputs

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

    def execute(self, calls: list[dict[str, Any]], turn: Turn | None = None) -> list[dict[str, Any]]:
        """Returns {"answer": ...} or {"problem": ...} for each call, in order. Waits for `turn` before it computes."""
        turn = turn or Turn(calls)
        if not turn.long:
            turn.take()  # a long call prepares, and encodes its answer, while others compute
        token = deadline.CHECK.set(turn)
        try:
            return self._outcomes(calls, turn)
        finally:
            deadline.CHECK.reset(token)
            turn.leave()

    def _outcomes(self, calls: list[dict[str, Any]], turn: Turn) -> list[dict[str, Any]]:
        outcomes = turn.outcomes = [{}] * len(calls)
        prepared = []
        for index, call in enumerate(calls):
            if index in turn.answered:  # by another thread, since one of these calls takes long
                continue
            turn.members = [call]
            try:
                if call["operation"] in MODEL_FREE_CALLS:
                    with turn.paused():  # most use no model; those that do take the turn again
                        outcomes[index] = {"answer": MODEL_FREE_CALLS[call["operation"]](call, self.models)}
                else:
                    prepared.append(self._prepare(index, call))
            except Exception as error:
                outcomes[index] = self.problem(error)
        if not prepared:
            return outcomes
        turn.take()
        groups: dict[tuple, list[PreparedCall]] = {}
        for each, inputs in zip(prepared, to_tensors([each.inputs for each in prepared]), strict=True):
            if each.index in turn.answered:
                continue
            turn.members = [each.call]
            try:
                each.rows = each.operation.rows(each.loaded.model, inputs, each.params)
                groups.setdefault(each.group, []).append(each)
            except Exception as error:
                outcomes[each.index] = self.problem(error)
        for group in groups.values():
            if group[0].index in turn.answered:
                continue
            for each, outcome in zip(group, self._of_group(group, turn), strict=True):
                outcomes[each.index] = outcome
        return outcomes

    def missing(self, call: dict[str, Any]) -> str | None:
        """The digest of the model that must be loaded before this call; None if there is none."""
        if call["operation"] in MODEL_FREE_CALLS:
            digest = call["params"].get("model") if call["operation"] == "apply_perturbation" else None
        else:
            digest = call["model"]
        return None if digest is None or digest in self.models else digest

    def load(self, digest: str, turn: Turn) -> None:
        with deadline.checking(turn):
            self.models.get(digest)

    @staticmethod
    def problem(error: Exception) -> dict[str, Any]:
        """The outcome of a call that failed."""
        public = error_of(error)
        if public.status >= 500 and not isinstance(error, Abandoned):
            log.error("call.failed", code=public.code, exc_info=error)
        return {"problem": public.problem()}

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

    def _of_group(self, group: list[PreparedCall], turn: Turn) -> list[dict[str, Any]]:
        """Answers one group. If that fails, runs each call alone, so that only the faulty one gets a problem."""
        try:
            return [{"answer": answer} for answer in _answers(group, turn)]
        except Exception as error:
            if len(group) == 1 or isinstance(error, Abandoned):
                return [self.problem(error)] * len(group)
            log.warning("batch.split", calls=len(group), error=type(error).__name__)
            return [outcome for each in group for outcome in self._of_group([each], turn)]


def _answers(group: list[PreparedCall], turn: Turn) -> list[dict[str, Any]]:
    """Computes and encodes the calls of a group together."""
    turn.take()
    before, first = turn.seconds, group[0]
    turn.members = [each.call for each in group]
    outputs = compute(first.loaded, first.operation, first.params, [each.rows for each in group])
    results = []
    for each, rows in zip(group, outputs, strict=True):
        result = each.operation.answer(each.loaded.model, each.rows, rows, each.params)
        results.append((result, each.call.get("encoding") or "none", each.call.get("grid", False)))
    compute_ms, start = round((turn.seconds - before) * 1000, 3), time.perf_counter()
    if turn.long:
        turn.leave()
    answers = encode_answers(results)
    timings = {"compute": compute_ms, "encode": _milliseconds(start)}
    counts = [max(map(len, each.rows.values()), default=0) + 1 for each in group]  # one more: a call is never free
    for each, answer, count in zip(group, answers, counts, strict=True):
        answer |= {"timings": each.timings | timings, "share": count / sum(counts)}
    return answers


def _milliseconds(start: float) -> float:
    return round((time.perf_counter() - start) * 1000, 3)


@lru_cache
def host() -> Host:
    """The host of this process."""
    devices.use_threads(settings().infer_threads)
    return Host(settings().resident_bytes, devices.device())


@lru_cache
def lane() -> Lane:
    """The lane of this process."""
    return Lane(host(), reply, settings().slow_call_threads)


def execute(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns {"answer": ...} or {"problem": ...} for each call, in order; members: app/core/calls/messages.py."""
    return host().execute(calls)
