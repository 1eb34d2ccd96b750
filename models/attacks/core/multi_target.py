"""Several target classes of an image in one forward pass: each row is copied once per target.

A copy depends on its image alone. The best copy is the result of the image; once one copy succeeds, all copies of that
image stop.
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
"""Values per image up to which larger batches are cheaper per image."""
AT_ONCE = 256
"""Maximum rows of a batch: larger ones gain nothing."""


def copies_pay(run: AttackRun) -> bool:
    """Whether copies are faster: small images, and a run whose batch shapes and query counts may vary."""
    return run.compact and run.budget is None and run.x[0].numel() <= SMALL


def run_targets_together(run: AttackRun, count: int, steps: CopySteps) -> Iterator[None]:
    """`steps` for `count` copies of each row that is left, a few rows after another."""
    left = run.index[~run.done]
    for part in left.split(max(1, AT_ONCE // count)) if len(left) else ():
        rows = torch.searchsorted(run.index, part)
        copies = _copies(run, rows, count)
        places = torch.arange(count, device=rows.device).repeat(len(rows))
        for _ in steps(copies, places):
            _stop_together(copies, count)
            going = copies.end_step()
            yield
            if not going:
                break
        _collect(run, torch.searchsorted(run.index, part), copies.results, count)


def _copies(run: AttackRun, rows: Tensor, count: int) -> AttackRun:
    """A run of its own, which starts from the results so far with no cost."""
    copies = copy(run)
    copies.state, copies.archive = SimpleNamespace(), None
    copies.clean = Clean(run.clean.logits)  # the graph belongs to the rows of `run`
    copies._select(rows.repeat_interleave(count))
    copies.index = torch.arange(len(copies.x), device=rows.device)
    for name in ("queries", "gradients", "steps", "zero_gradient"):
        setattr(copies, name, torch.zeros_like(getattr(copies, name)))
    return copies


def _stop_together(copies: AttackRun, count: int) -> None:
    image = copies.index // count
    over = torch.zeros(int(image[-1]) + 1, dtype=torch.bool, device=image.device)
    over[image[copies.done]] = True
    copies.done = over[image]


def _collect(run: AttackRun, rows: Tensor, results: dict[str, Tensor], count: int) -> None:
    """The best copy becomes the result of the row; the costs of the copies are added."""
    margin, distance = (results[name].view(-1, count) for name in ("margin", "distance"))
    rank = torch.where(margin < 0, distance, torch.inf) if run.minimal else margin
    best = torch.where(torch.isfinite(rank).any(1), rank.argmin(1), margin.argmin(1))
    winners = torch.arange(len(rows), device=rows.device) * count + best
    for name in ("best", "margin", "distance"):
        setattr(run, name, getattr(run, name).index_copy(0, rows, results[name][winners]))
    for name in ("queries", "gradients", "zero_gradient"):
        setattr(run, name, getattr(run, name).index_add(0, rows, results[name].view(-1, count).sum(1)))
    run.stop_successful()
