"""Square's search with several squares of an image tried in one pass, where the model is at hand.

The squares of an image are tried in their order and each from the best image so far, as one by one: what comes after a
square that was taken was tried in vain and is tried again. Few are taken, so little is lost.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from models.attacks.trial import Trial

Propose = Callable[[Tensor, Tensor, int], Tensor]
"""Rows and numbers (p,), and the first number of their span -> the images (p, C, H, W) that these tries make."""
AHEAD, AT_ONCE = 16, 128
"""Most tries of one image in a pass, and images of a pass beyond which more of them gain nothing."""
VAIN = 4
"""An image looks ahead while at most one try in so many was in vain."""
SPAN = 512
"""Tries within which images may be at different ones."""


def search(trial: Trial, total: int, propose: Propose) -> Iterator[None]:
    """Tries 0 .. total - 1 of every row, from `state.x` with the margin `state.low`. Yields after each pass."""
    state = trial.state
    state.vain = torch.zeros_like(trial.queries)
    for start in range(0, total, SPAN):
        size, state.at = min(SPAN, total - start), torch.zeros_like(trial.queries)
        while True:
            rows = (~trial.done & (state.at < size)).nonzero()[:, 0]
            if not len(rows):
                break
            _advance(trial, rows, start, size, propose)
            yield


def _advance(trial: Trial, rows: Tensor, start: int, size: int, propose: Propose) -> None:
    """One pass: each of the rows goes on to the first of its next tries that is better, or past all of them."""
    state, at = trial.state, trial.state.at[rows]
    calm = state.vain[rows] * VAIN <= start + at
    counts = torch.where(calm, min(AHEAD, max(1, AT_ONCE // len(rows))), 1).minimum(size - at)
    ends = counts.cumsum(0)
    own = torch.arange(len(rows), device=rows.device).repeat_interleave(counts)
    place = torch.arange(len(own), device=rows.device) - (ends - counts)[own]
    who = rows[own]
    tried = propose(who, start + at[own] + place, start)
    margin = trial.margins_of(tried, who)
    first = counts.scatter_reduce(0, own, torch.where(margin < state.low[who], place, size), "amin")
    taken = first < counts
    gone = torch.where(taken, first + 1, counts)
    state.at = state.at.index_add(0, rows, gone)
    state.vain = state.vain.index_add(0, rows, counts - gone)
    chosen, winners = (ends - counts + first)[taken], rows[taken]
    if len(winners):
        state.x = state.x.index_copy(0, winners, tried[chosen])
        state.low = state.low.index_copy(0, winners, margin[chosen])
        trial.offer(state.x, state.low)
