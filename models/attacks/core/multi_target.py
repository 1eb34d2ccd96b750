"""Copies of rows side by side: several targets of an image in one pass, in place of many small ones in turn.

What a copy does depends on its image alone. The best of an image's copies is the image's; once one copy has succeeded
all of them rest.
"""

from collections.abc import Callable, Iterator
from copy import copy
from types import SimpleNamespace

import torch
from torch import Tensor

from models.attacks.core.logits import Clean
from models.attacks.core.run import AttackRun

CopySteps = Callable[[AttackRun, Tensor], Iterator[None]]
"""Steps of a run whose rows are copies; the tensor (rows,) says which copy of its image a row is."""
SMALL = 4096
"""Numbers per image up to which a pass is the cheaper the more images it has."""
AT_ONCE = 256
"""Rows side by side: beyond this a pass gains nothing more."""


def copies_pay(run: AttackRun) -> bool:
    """Whether copies pay: small images, and shapes of batches and counts of queries that may vary."""
    return run.compact and run.budget is None and run.x[0].numel() <= SMALL


def run_targets_together(run: AttackRun, count: int, steps: CopySteps) -> Iterator[None]:
    """`steps` for `count` copies of each row that is left, a few rows after another."""
    left = run.index[~run.done]
    for part in left.split(max(1, AT_ONCE // count)) if len(left) else ():
        rows = torch.searchsorted(run.index, part)
        copies = _copies(run, rows, count)
        places = torch.arange(count, device=rows.device).repeat(len(rows))
        for _ in steps(copies, places):
            _rest_together(copies, count)
            going = copies.end_step()
            yield
            if not going:
                break
        _collect(run, torch.searchsorted(run.index, part), copies.found, count)


def _copies(run: AttackRun, rows: Tensor, count: int) -> AttackRun:
    """A run of its own, which knows what was found so far and has spent nothing."""
    copies = copy(run)
    copies.state, copies.archive = SimpleNamespace(), None
    copies.clean = Clean(run.clean.logits)  # its graph is that of other rows
    copies._take(rows.repeat_interleave(count))
    copies.index = torch.arange(len(copies.x), device=rows.device)
    for name in ("queries", "gradients", "steps", "zero_gradient"):
        setattr(copies, name, torch.zeros_like(getattr(copies, name)))
    return copies


def _rest_together(copies: AttackRun, count: int) -> None:
    image = copies.index // count
    over = torch.zeros(int(image[-1]) + 1, dtype=torch.bool, device=image.device)
    over[image[copies.done]] = True
    copies.done = over[image]


def _collect(run: AttackRun, rows: Tensor, found: dict[str, Tensor], count: int) -> None:
    """The best copy becomes what was found for the row; what the copies cost adds up."""
    margin, distance = (found[name].view(-1, count) for name in ("margin", "distance"))
    rank = torch.where(margin < 0, distance, torch.inf) if run.minimal else margin
    best = torch.where(torch.isfinite(rank).any(1), rank.argmin(1), margin.argmin(1))
    chosen = torch.arange(len(rows), device=rows.device) * count + best
    for name in ("best", "margin", "distance"):
        setattr(run, name, getattr(run, name).index_copy(0, rows, found[name][chosen]))
    for name in ("queries", "gradients", "zero_gradient"):
        setattr(run, name, getattr(run, name).index_add(0, rows, found[name].view(-1, count).sum(1)))
    run.rest_if_over()
