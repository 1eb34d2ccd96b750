"""The processes (ranks) of one training on several devices: what they exchange, and which rows of a batch are whose.

Every rank has the whole model and b = B / k rows of each batch of B images, from row r * b on; gradients are averaged
before each optimiser step. Families call `average_gradients`, `mean_over_ranks` and the like, which do nothing in a
training on one device. All draws are those of the whole batch, cut to the rank's rows (`RowDraws`).
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from models.context import StepContext
from models.types import Batch, Metrics

WAIT = timedelta(days=7)
"""How long a rank waits for the next command; the end of a process ends the wait at once."""


@dataclass(frozen=True)
class Ranks:
    """This process among `size`. `control` carries commands and objects over the CPU, also between GPUs."""

    rank: int
    size: int
    control: Any

    @classmethod
    def join(cls, store: dist.Store, rank: int, size: int, device: torch.device) -> "Ranks":
        """Waits until all have joined: NCCL between GPUs, gloo between CPUs."""
        backend = "nccl" if device.type == "cuda" else "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
        return cls(rank, size, dist.new_group(backend="gloo", timeout=WAIT))

    @property
    def first(self) -> bool:
        return self.rank == 0

    def command(self, word: int = 0) -> int:
        """The word of the first rank, at every rank. Also makes the others wait for the first one."""
        message = torch.tensor([word])
        dist.broadcast(message, 0, self.control)
        return int(message)

    def share(self, value: Any = None) -> Any:
        """The object of the first rank, at every rank."""
        values = [value]
        dist.broadcast_object_list(values, 0, self.control)
        return values[0]

    def collect(self, value: Any) -> list[Any] | None:
        """The objects of all ranks, at the first one."""
        values = [None] * self.size if self.first else None
        dist.gather_object(value, values, 0, self.control)
        return values

    def leave(self) -> None:
        dist.destroy_process_group()


_ranks: Ranks | None = None


@contextmanager
def among(ranks: Ranks | None) -> Iterator[None]:
    """Inside, updates are made together with the other ranks; with None, alone."""
    global _ranks
    before, _ranks = _ranks, ranks
    try:
        yield
    finally:
        _ranks = before


def rank_count() -> int:
    """The number of processes that make an update together."""
    return 1 if _ranks is None else _ranks.size


@torch.no_grad()
def average_gradients(optimisers: Iterable[Optimizer]) -> None:
    """The mean gradient of all ranks, in one all-reduce. Call it after `backward`, before anything reads gradients."""
    if _ranks is None:
        return
    groups = (group for optimiser in optimisers for group in optimiser.param_groups)
    gradients = [weight.grad for group in groups for weight in group["params"] if weight.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat.div_(_ranks.size)
    parts = flat.split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [part.view(g.shape) for part, g in zip(parts, gradients, strict=True)])


@torch.no_grad()
def total_over_ranks(value: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, detached."""
    if _ranks is None:
        return value.detach()
    total = value.detach().clone()
    dist.all_reduce(total)
    return total


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of a tensor over all ranks, detached."""
    return total_over_ranks(value) / rank_count() if _ranks is not None else value.detach()


@torch.no_grad()
def follow_first(tensors: Iterable[Tensor]) -> None:
    """Overwrites tensors with those of the first rank: after a change of weights that depends on a rank's rows."""
    if _ranks is not None:
        for tensor in tensors:
            dist.broadcast(contiguous := tensor.contiguous(), 0)
            if contiguous is not tensor:
                tensor.copy_(contiguous)


class RowDraws(TorchFunctionMode):
    """Inside, random numbers are those of `count` times as many rows, cut to part `index` of them.

    The first dimension that is a multiple m of `rows` is taken for m stacked batches (else, the first one if it divides
    `rows`, for a part of a batch). A draw of another shape is left as it is: then it is the same in all parts. Applies
    to rand, randn, randint and dropout, from `generator` or the global one.
    """

    def __init__(self, index: int, count: int, rows: int, generator: torch.Generator):
        super().__init__()
        self.index, self.count, self.rows, self.generator = index, count, rows, generator

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func not in DRAWS or kwargs.get("generator") not in (None, self.generator):
            return func(*args, **kwargs)
        return DRAWS[func](self, func, *args, **kwargs)

    def cut(self, size: Sequence[int], draw: Any) -> Tensor:
        """The part's entries of `draw(larger size)`."""
        size, rows = list(size), self.rows
        axis = next((axis for axis, length in enumerate(size) if length and length % rows == 0), None)
        if axis is None and size and size[0] > 1 and rows % size[0] == 0:
            axis, rows = 0, size[0]
        if axis is None:
            return draw(size)
        larger = [length * (self.count if place == axis else 1) for place, length in enumerate(size)]
        stacked = draw(larger).unflatten(axis, (-1, self.count, rows))  # (..., m, count, rows, ...)
        return stacked.select(axis + 1, self.index).flatten(axis, axis + 1)

    def _sized(self, func: Any, *args: Any, **kwargs: Any) -> Tensor:
        size = kwargs.pop("size", args[0] if args and not isinstance(args[0], int) else args)
        return self.cut(size, lambda larger: func(larger, **kwargs))

    def _integers(self, func: Any, *args: Any, **kwargs: Any) -> Tensor:
        *bounds, size = args if "size" not in kwargs else (*args, kwargs.pop("size"))
        return self.cut(size, lambda larger: func(*bounds, larger, **kwargs))

    def _dropout(
        self, func: Any, values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training or not p:
            return values
        return values * self.cut(values.shape, lambda larger: func(values.new_ones(larger), p, True))


def row_parts(batch: Batch, context: StepContext, count: int) -> Iterator[Batch]:
    """`count` equal parts of a batch in turn; meanwhile draws are the part's rows of the batch's draws."""
    if count == 1:
        yield batch
        return
    rows, generators = len(next(iter(batch.values()))) // count, [context.generator, torch.default_generator]
    if context.generator.device.type == "cuda":
        generators.append(torch.cuda.default_generators[context.generator.device.index or 0])
    states = [generator.get_state() for generator in generators]
    for index in range(count):
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        with RowDraws(index, count, rows, context.generator):
            yield {name: column[index * rows : (index + 1) * rows] for name, column in batch.items()}


def mean_metrics(parts: list[Metrics]) -> Metrics:
    """The means over the parts of a batch."""
    if len(parts) == 1:
        return parts[0]
    return {name: torch.stack([part[name] for part in parts]).mean(0) for name in parts[0]}


F = nn.functional
DRAWS = {
    torch.rand: RowDraws._sized,
    torch.randn: RowDraws._sized,
    torch.randint: RowDraws._integers,
    F.dropout: RowDraws._dropout,
    F.dropout2d: RowDraws._dropout,
}
