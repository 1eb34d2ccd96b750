"""Computes the rows of many requests together in batches of fixed sizes: the same request gives the same bytes.

Kernels choose their order of summation by batch size, so a row gives other bits in a batch of 3 than in one of 8. Every
batch here has the model's chunk size, padded. Other sizes, and sharing a chunk between requests, are used only where a
trial shows that no bit changes.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models import deadline
from models.family import Family
from models.operations.core.base import Operation, Params, Rows

CHUNKS = ((4_096, 8), (16_384, 4), (65_536, 2))
"""(numbers per image up to which it applies, rows of a chunk): a large image should not pay for seven empty rows."""
SMALLER, LARGER = (1, 2, 4), (2, 4, 8)
"""Batch sizes in rows below a chunk, and in chunks above it, that a trial considers."""
MAX_PLANS = 256
"""Plans kept per model."""


@dataclass(frozen=True)
class BatchPlan:
    """How rows are batched without a change of bits."""

    sizes: tuple[int, ...]
    """Batch sizes that give the same bits."""
    shares: bool
    """Whether a batch may hold rows of several requests: the bits of a row do not depend on its place."""


@dataclass
class LoadedModel:
    """A model in memory, ready to compute. `bytes` is its estimated size."""

    digest: str
    model: Family
    bytes: int
    operations: dict[str, type[Operation]]
    """The operations it supports, by name."""
    plans: dict[tuple, BatchPlan] = field(default_factory=dict)
    forward: Family | None = None
    """Computes without gradients in place of `model` (workers/inference/onnx_executor.py)."""
    device: torch.device = field(init=False)

    def __post_init__(self) -> None:
        self.device = self.model.device

    def executor_of(self, operation: Operation) -> Family:
        return self.model if self.forward is None or operation.gradients else self.forward

    @property
    def chunk(self) -> int:
        return next((rows for pixels, rows in CHUNKS if self.model.data.pixels <= pixels), 1)


def compute(loaded: LoadedModel, operation: Operation, params: Params, requests: list[Rows]) -> list[Rows]:
    """The outputs of `operation` for the rows of each request, on the CPU."""
    plan = plan_for(loaded, operation, params, requests[0])
    if not plan.shares:
        return [_in_chunks(loaded, operation, params, rows, plan.sizes) for rows in requests]
    outputs = _in_chunks(loaded, operation, params, _joined(requests), plan.sizes)
    if len(requests) == 1:
        return [outputs]
    lengths = [_length(rows) for rows in requests]
    parts = {name: tensor.split(lengths) for name, tensor in outputs.items()}
    return [{name: part[index] for name, part in parts.items()} for index in range(len(requests))]


def plan_for(loaded: LoadedModel, operation: Operation, params: Params, rows: Rows) -> BatchPlan:
    """The plan for requests like this one. The first of them runs the trial."""
    if operation.one_row_per_batch:
        return BatchPlan((1,), shares=True)
    shapes = tuple((name, tensor.shape[1:], tensor.dtype) for name, tensor in rows.items())
    key = (operation.name, operation.batch_key(params), shapes)
    if operation.gradients:
        key = (operation.name, getattr(params, "goal", None))
    if (plan := loaded.plans.get(key)) is None:
        trial = _try_gradients if operation.gradients else _try_forward
        plan = trial(loaded, operation, params, rows)
        if len(loaded.plans) >= MAX_PLANS:
            loaded.plans.clear()
        loaded.plans[key] = plan
    return plan


def _in_chunks(loaded: LoadedModel, operation: Operation, params: Params, rows: Rows, sizes: tuple[int, ...]) -> Rows:
    parts = []
    for start, stop, size in cut(_length(rows), sizes):
        part = _run(loaded, operation, params, _padded(rows, start, stop, size))
        parts.append({name: tensor[: stop - start].cpu() for name, tensor in part.items()})
    return _joined(parts)


def cut(total: int, sizes: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """(start, stop, batch size) of the batches for `total` rows; only the last may have fewer rows than its size."""
    start = 0
    while start < total:
        left = total - start
        filled = max((size for size in sizes if size <= left), default=min(sizes))
        # one batch with a few empty rows is faster than two
        size = min((size for size in sizes if left <= size <= left * 4 / 3), default=filled)
        yield start, min(start + size, total), size
        start += size


def _padded(rows: Rows, start: int, stop: int, size: int) -> Rows:
    """Rows start..stop, the last one repeated up to `size`: a real row is safe for every operation."""
    index = torch.arange(start, start + size).clamp_(max=stop - 1)
    whole = stop - start == size
    return {name: tensor[start:stop] if whole else tensor[index] for name, tensor in rows.items()}


def _run(loaded: LoadedModel, operation: Operation, params: Params, rows: Rows) -> Rows:
    deadline.check()
    rows = {name: tensor.to(loaded.device) for name, tensor in rows.items()}
    mode: AbstractContextManager = torch.enable_grad() if operation.gradients else torch.inference_mode()
    with mode:
        outputs = operation.compute(loaded.executor_of(operation), rows, params)
    return {name: tensor.detach() for name, tensor in outputs.items()}


def _try_forward(loaded: LoadedModel, operation: Operation, params: Params, rows: Rows) -> BatchPlan:
    if any(tensor.ndim == 4 and tensor[0].numel() > loaded.model.data.pixels for tensor in rows.values()):
        return BatchPlan((1,), shares=True)  # larger images than the model's: a trial would cost too much
    chunk = loaded.chunk
    trial_rows = _trial_rows(rows, chunk * max(LARGER))

    def run(start: int, stop: int, turn: int = 0) -> Rows:
        part = {name: tensor[start:stop].roll(turn, 0) for name, tensor in trial_rows.items()}
        outputs = _run(loaded, operation, params, part)
        return {name: tensor.roll(-turn, 0).cpu() for name, tensor in outputs.items()}

    first = run(0, chunk)
    if chunk == 1:
        return BatchPlan((1,), shares=True)
    if not all(_same(first, run(0, chunk, turn)) for turn in range(1, chunk)):
        return BatchPlan((chunk,), shares=False)
    sizes = [size for size in SMALLER if size < chunk]
    if chunk == CHUNKS[0][1]:  # larger images fill the machine already
        sizes += [chunk * factor for factor in LARGER]
    reference = _joined([run(start, start + chunk) for start in range(0, max([2 * chunk, *sizes]), chunk)])

    def equal(size: int) -> bool:
        """Whether batches of this size give the same rows as batches of the chunk's size."""
        rows = max(size, 2 * chunk)
        outputs = _joined([run(start, start + size) for start in range(0, rows, size)])
        return _same(outputs, {name: tensor[:rows] for name, tensor in reference.items()})

    return BatchPlan((chunk, *filter(equal, sizes)), shares=True)


def _try_gradients(loaded: LoadedModel, operation: Operation, params: Params, rows: Rows) -> BatchPlan:
    """The whole operation may take long, so the trial compares the network and its gradient, up to one chunk."""
    chunk = loaded.chunk
    derivative = operation.derivative(loaded.model, params, chunk)
    if derivative is None:
        return BatchPlan((chunk,), shares=False)
    network, inputs = derivative

    with torch.enable_grad():
        if network(inputs[:1].to(loaded.device, copy=True).requires_grad_()).grad_fn is None:
            return BatchPlan((chunk,), shares=False)  # a black-box network: there is no gradient to compare

    def outputs_and_gradient(part: Tensor) -> Rows:
        deadline.check()
        leaf = part.to(loaded.device, copy=True).requires_grad_()
        outputs = network(leaf)
        (gradient,) = torch.autograd.grad(outputs.square().sum(), leaf)
        return {"outputs": outputs.detach(), "gradient": gradient}

    def rolled(turn: int) -> Rows:
        return {name: tensor.roll(-turn, 0) for name, tensor in outputs_and_gradient(inputs.roll(turn, 0)).items()}

    with torch.enable_grad():
        first = outputs_and_gradient(inputs)
        if not all(_same(first, rolled(turn)) for turn in range(1, chunk)):
            return BatchPlan((chunk,), shares=False)
        smaller = [size for size in SMALLER if size < chunk]
        equal = [size for size in smaller if _same(first, _joined(list(map(outputs_and_gradient, inputs.split(size)))))]
    return BatchPlan((chunk, *equal), shares=True)


def _trial_rows(rows: Rows, count: int) -> Rows:
    """`count` rows of the same form: random images in [0, 1], Gaussian codes, integers repeated from `rows`."""
    generator = torch.Generator().manual_seed(0)
    trial_rows = {}
    for name, tensor in rows.items():
        shape = (count, *tensor.shape[1:])
        if not tensor.is_floating_point():
            trial_rows[name] = tensor[torch.arange(count) % len(tensor)]
        else:
            draw = torch.randn if tensor.ndim == 2 else torch.rand
            trial_rows[name] = draw(shape, generator=generator, dtype=tensor.dtype)
    return trial_rows


def _same(one: Rows, other: Rows) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def _joined(parts: list[Rows]) -> Rows:
    if len(parts) == 1:
        return parts[0]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _length(rows: Rows) -> int:
    return len(next(iter(rows.values())))
