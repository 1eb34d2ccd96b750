"""Computing the rows of many requests together, in batches of fixed shapes, so that company never shows in an answer.

The kernels of a framework choose their order of summation by batch size: the same row gives other bits in a batch of 3
than in one of 8. Here every batch has the model's own chunk size, padded; other sizes, and the sharing of a chunk, are
used only where a trial shows that they change no bit.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.family import Family
from models.operations.core.base import Operation, Params, Rows

# Numbers per image up to which a chunk has so many rows: a lone large image should not pay for seven empty ones.
CHUNKS = ((4_096, 8), (16_384, 4), (65_536, 2))
SMALLER, LARGER = (1, 2, 4), (2, 4, 8)
MAX_PLANS = 256


@dataclass(frozen=True)
class BatchPlan:
    """Batch sizes that give the same bits, and whether a row's bits are free of its place among other rows."""

    sizes: tuple[int, ...]
    shares: bool


@dataclass
class LoadedModel:
    """A model in memory, ready to compute."""

    digest: str
    model: Family
    bytes: int
    operations: dict[str, type[Operation]]
    """What it can do, by name."""
    plans: dict[tuple, BatchPlan] = field(default_factory=dict)
    forward: Family | None = None
    """What computes without gradients, when it is not `model` itself (workers/inference/onnx_executor.py)."""

    def computing(self, operation: Operation) -> Family:
        return self.model if self.forward is None or operation.gradients else self.forward

    @property
    def chunk(self) -> int:
        return next((rows for pixels, rows in CHUNKS if self.model.data.pixels <= pixels), 1)


def compute(loaded: LoadedModel, operation: Operation, params: Params, requests: list[Rows]) -> list[Rows]:
    """What `operation` finds for the rows of each request, on the CPU."""
    plan = plan_for(loaded, operation, params, requests[0])
    if not plan.shares:
        return [_in_chunks(loaded, operation, params, rows, plan.sizes) for rows in requests]
    found = _in_chunks(loaded, operation, params, _joined(requests), plan.sizes)
    if len(requests) == 1:
        return [found]
    lengths = [_length(rows) for rows in requests]
    parts = {name: tensor.split(lengths) for name, tensor in found.items()}
    return [{name: part[index] for name, part in parts.items()} for index in range(len(requests))]


def plan_for(loaded: LoadedModel, operation: Operation, params: Params, rows: Rows) -> BatchPlan:
    """The outcome of the trial for requests like this one, made at the first of them."""
    if operation.one_row_per_batch:
        return BatchPlan((1,), shares=True)
    shapes = tuple((name, tensor.shape[1:], tensor.dtype) for name, tensor in rows.items())
    key = (operation.name, operation.batch_key(params), shapes)
    if operation.gradients:
        key = (operation.name, getattr(params, "goal", None))
    if key not in loaded.plans:
        if len(loaded.plans) >= MAX_PLANS:
            loaded.plans.clear()
        trial = _try_gradients if operation.gradients else _try_forward
        loaded.plans[key] = trial(loaded, operation, params, rows)
    return loaded.plans[key]


def _in_chunks(loaded: LoadedModel, operation: Operation, params: Params, rows: Rows, sizes: tuple[int, ...]) -> Rows:
    parts = []
    for start, stop, size in cut(_length(rows), sizes):
        part = _run(loaded.computing(operation), operation, params, _padded(rows, start, stop, size))
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
    """Rows start..stop, the last one repeated up to `size`: whatever an operation does with it, it is used to."""
    index = torch.arange(start, start + size).clamp_(max=stop - 1)
    whole = stop - start == size
    return {name: tensor[start:stop] if whole else tensor[index] for name, tensor in rows.items()}


def _run(model: Family, operation: Operation, params: Params, rows: Rows) -> Rows:
    device = model.device
    rows = {name: tensor.to(device) for name, tensor in rows.items()}
    mode: AbstractContextManager = torch.enable_grad() if operation.gradients else torch.inference_mode()
    with mode:
        found = operation.compute(model, rows, params)
    return {name: tensor.detach() for name, tensor in found.items()}


def _try_forward(loaded: LoadedModel, operation: Operation, params: Params, rows: Rows) -> BatchPlan:
    if any(tensor.ndim == 4 and tensor[0].numel() > loaded.model.data.pixels for tensor in rows.values()):
        return BatchPlan(
            (1,), shares=True
        )  # of a size of its own: one by one, and no trial, which would cost many times it
    chunk = loaded.chunk
    many = _trial_rows(rows, chunk * max(LARGER))

    def run(start: int, stop: int, turn: int = 0) -> Rows:
        part = {name: tensor[start:stop].roll(turn, 0) for name, tensor in many.items()}
        found = _run(loaded.computing(operation), operation, params, part)
        return {name: tensor.roll(-turn, 0).cpu() for name, tensor in found.items()}

    first = run(0, chunk)
    if chunk == 1:
        return BatchPlan((1,), shares=True)
    if not all(_same(first, run(0, chunk, turn)) for turn in range(1, chunk)):
        return BatchPlan((chunk,), shares=False)
    sizes = [size for size in SMALLER if size < chunk]
    if chunk == CHUNKS[0][1]:  # larger images fill the machine already
        sizes += [chunk * factor for factor in LARGER]
    wanted = _joined([run(start, start + chunk) for start in range(0, max([2 * chunk, *sizes]), chunk)])

    def equal(size: int) -> bool:
        """Whether pieces of this size give the same rows as pieces of the chunk's size."""
        rows = max(size, 2 * chunk)
        found = _joined([run(start, start + size) for start in range(0, rows, size)])
        return _same(found, {name: tensor[:rows] for name, tensor in wanted.items()})

    return BatchPlan((chunk, *filter(equal, sizes)), shares=True)


def _try_gradients(loaded: LoadedModel, operation: Operation, params: Params, rows: Rows) -> BatchPlan:
    """Operations that differentiate may take long: what is tried is the model and its derivative, up to one chunk."""
    model, chunk = loaded.model, loaded.chunk
    tried = operation.derivative(model, params, chunk)
    if tried is None:
        return BatchPlan((chunk,), shares=False)
    network, inputs = tried

    with torch.enable_grad():
        if network(inputs[:1].to(model.device, copy=True).requires_grad_()).grad_fn is None:
            return BatchPlan((chunk,), shares=False)  # a network that can only be asked: there is no derivative to try

    def slope(part: Tensor) -> Rows:
        leaf = part.to(model.device, copy=True).requires_grad_()
        outputs = network(leaf)
        (gradient,) = torch.autograd.grad(outputs.square().sum(), leaf)
        return {"outputs": outputs.detach(), "gradient": gradient}

    def rolled(turn: int) -> Rows:
        return {name: tensor.roll(-turn, 0) for name, tensor in slope(inputs.roll(turn, 0)).items()}

    with torch.enable_grad():
        first = slope(inputs)
        if not all(_same(first, rolled(turn)) for turn in range(1, chunk)):
            return BatchPlan((chunk,), shares=False)
        smaller = [size for size in SMALLER if size < chunk]
        equal = [size for size in smaller if _same(first, _joined([slope(part) for part in inputs.split(size)]))]
    return BatchPlan((chunk, *equal), shares=True)


def _trial_rows(rows: Rows, count: int) -> Rows:
    """`count` rows of the same form: random images in [0, 1], codes from a Gaussian, integers as they were given."""
    draws = torch.Generator().manual_seed(0)
    found = {}
    for name, tensor in rows.items():
        shape = (count, *tensor.shape[1:])
        if not tensor.is_floating_point():
            found[name] = tensor[torch.arange(count) % len(tensor)]
        else:
            draw = torch.randn if tensor.ndim == 2 else torch.rand
            found[name] = draw(shape, generator=draws, dtype=tensor.dtype)
    return found


def _same(one: Rows, other: Rows) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def _joined(parts: list[Rows]) -> Rows:
    if len(parts) == 1:
        return parts[0]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _length(rows: Rows) -> int:
    return len(next(iter(rows.values())))
