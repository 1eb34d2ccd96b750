"""A training on several devices: every rank runs a ParallelTraining, and they stay in step.

The first rank is told to advance, to save, to stop; it tells the others (`follow`). It alone inspects, measures and
writes. Batch norm, minibatch stddev and image pools see the rows of their rank; buffers of the other ranks are in the
checkpoint beside those of the first, so that a resumed training is exact with the same number of ranks.
"""

from typing import Any

import torch
from torch import Tensor

from models.context import StepContext
from models.family import Config
from models.training.checkpoint import State, on_host
from models.training.loop import Training
from models.training.ranks import Ranks, RowDraws, among, follow_first, mean_over_ranks
from models.types import Batch, Metrics

ADVANCE, SAVE, STOP = 1, 2, 3
FEWEST_ROWS = 2
"""Rows of a rank: batch norm needs two."""


def for_ranks(config: Config, size: int, accumulate: int = 1) -> Config:
    """`config` with its batch, which is that of all `size` ranks together, rounded up to equal parts.

    Networks are not compiled: the compiler would have to trace `RowDraws`.
    """
    parts = size * accumulate
    rows = max(FEWEST_ROWS, -(-config.batch_size // parts))
    return config.model_copy(update={"batch_size": rows * parts, "compile": False})


class ParallelTraining(Training):
    """One rank of a training. Call `join` before the first update; the first rank calls `dismiss` after the last."""

    ranks: Ranks
    _others: dict[str, Tensor]
    """Buffers of the other ranks, as read from a checkpoint."""

    def join(self, ranks: Ranks) -> None:
        """Every rank starts from the state of the first one."""
        self.ranks = ranks
        others = getattr(self, "_others", {})
        start = super().state()
        state = ranks.share(State(start.tensors | others, start.facts) if ranks.first else None)
        if not ranks.first:
            self.restore(state)

    def follow(self) -> None:
        """What a rank other than the first does: what it is told, until it is told to stop."""
        self.family.train()
        while (command := self.ranks.command()) != STOP:
            if command == ADVANCE:
                self.advance()
            else:
                self.ranks.collect(self._own_buffers())
        self.train.close()

    def dismiss(self) -> None:
        """Ends `follow` at the other ranks: what comes after the last update, the first one does alone."""
        self.ranks.command(STOP)

    def advance(self):
        if self.ranks.first:
            self.ranks.command(ADVANCE)
        return super().advance()

    def state(self) -> State:
        state = super().state()
        self.ranks.command(SAVE)
        others: dict[str, Tensor] = {}
        for rank, buffers in enumerate(self.ranks.collect({})):
            others |= {f"rank{rank}/{name}": value for name, value in buffers.items()}
        return State(state.tensors | others, state.facts)

    def restore(self, state: State) -> None:
        super().restore(state)
        self._others = {name: value for name, value in state.tensors.items() if name.startswith("rank")}
        if hasattr(self, "ranks") and not self.ranks.first:
            prefix, buffers = f"rank{self.ranks.rank}/", dict(self.family.named_buffers())
            for name, value in self._others.items():
                if name.startswith(prefix) and name.removeprefix(prefix) in buffers:
                    buffers[name.removeprefix(prefix)].copy_(value)

    def _batch(self) -> Batch:
        rows = self.batch_size // self.ranks.size
        return self.train.batch(self.seed, self.images + self.ranks.rank * rows, rows)

    def _update(self, batch: Batch, context: StepContext) -> Metrics:
        rows = self.batch_size // self.ranks.size
        with among(self.ranks), RowDraws(self.ranks.rank, self.ranks.size, rows, context.generator):
            metrics = super()._update(batch, context)
            values = torch.stack([value.detach().float().to(self.device) for value in metrics.values()])
            return dict(zip(metrics, mean_over_ranks(values).unbind(), strict=True))

    def _inspect(self) -> list[Any]:
        notices = super()._inspect() if self.ranks.first else []
        self._agree()
        return notices

    def _evaluate_midway(self) -> dict[str, float]:
        measured = super()._evaluate_midway() if self.ranks.first else {}
        self._agree()
        return measured

    def _agree(self) -> None:
        """After what the first rank has done alone, which may have changed weights and buffers."""
        self.ranks.command()
        with among(self.ranks):
            follow_first(self.family.state_dict().values())

    def _own_buffers(self) -> dict[str, Tensor]:
        persistent = self.family.state_dict().keys()
        return on_host({name: value for name, value in self.family.named_buffers() if name in persistent})[0]
