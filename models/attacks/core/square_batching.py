"""Square's search with several squares of an image tried in one pass, where the model is at hand.

The squares of an image are tried in their order and each from the best image so far, as one by one: what comes after a
square that was taken was tried in vain and is tried again. Few are taken, so little is lost. The model is not asked
about a square that changes nothing, nor twice about the same one on the same image: the answer is known.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from models.attacks.core.run import AttackRun


@dataclass(frozen=True)
class Tries:
    """Tries (p,) of some rows: whether each changes its row's image, what it does as a number (equal tries do the same
    to an image) or None where nobody keeps count of those, since which try that number has meant the same, and how to
    make the images (k, C, H, W) of the tries at given places (k,)."""

    moves: Tensor
    key: Tensor | None
    since: Tensor
    images: Callable[[Tensor], Tensor]


Propose = Callable[[Tensor, Tensor, int], Tries]
"""Rows and numbers (p,), and the first number of their span -> these tries."""
AHEAD, WORTH, AT_ONCE = 64, 48, 384
"""Most tries of one image in a pass; images that a pass may have at no cost that counts, and that it has at most."""
CALM = 2
"""An image looks one try further ahead for so many since its last better one."""
SIFT = 4
"""Most tries that are looked at for each that is made: late in a search most change nothing or were made before."""
SPAN = 2048
"""Tries within which images may be at different ones."""


def search(run: AttackRun, total: int, keys: int, propose: Propose) -> Iterator[None]:
    """Tries 0 .. total - 1 of every row, from `state.x` with the margin `state.low`. Yields after each pass.

    `keys` is how many numbers there are for what a try does; 0: no count is kept.
    """
    state = run.state
    state.quiet, state.share = torch.zeros_like(run.queries), [1.0]  # a list: not one entry a row
    state.tried = torch.full((len(run.x), keys), -1, dtype=torch.int32, device=run.x.device)
    for start in range(0, total, SPAN):
        size, state.at = min(SPAN, total - start), torch.zeros_like(run.queries)
        while True:
            rows = (~run.done & (state.at < size)).nonzero()[:, 0]
            if not len(rows):
                break
            _advance(run, rows, start, size, propose)
            yield


def _advance(run: AttackRun, rows: Tensor, start: int, size: int, propose: Propose) -> None:
    """One pass: each of the rows goes on to the first of its next tries that is better, or past all of them."""
    state, at = run.state, run.state.at[rows]
    least, limit = (max(1, count // len(rows)) for count in (WORTH, AT_ONCE))
    most = (least + state.quiet[rows] // CALM).clamp_max(min(AHEAD, limit))
    spans = (most / state.share[0]).long().minimum(size - at)
    ends = spans.cumsum(0)
    own = torch.arange(len(rows), device=rows.device).repeat_interleave(spans)
    place = torch.arange(len(own), device=rows.device) - (ends - spans)[own]
    who, number = rows[own], start + at[own] + place
    tries = propose(who, number, start)
    worth = tries.moves
    if tries.key is not None:
        worth = worth & (state.tried[who, tries.key] < tries.since)
    state.share[0] = max(float(worth.float().mean()), 1 / SIFT)
    before = worth.cumsum(0) - worth.long()
    rank = before - before[ends - spans][own]  # among the tries of the same row that are worth making
    chosen = (worth & (rank < most[own])).nonzero()[:, 0]
    # a row that finds nothing better goes on to the first try that was left for the next pass
    gone = spans.scatter_reduce(0, own, torch.where(worth & (rank >= most[own]), place, size), "amin")
    if len(chosen):
        own, who, place, number = own[chosen], who[chosen], place[chosen], number[chosen]
        images = tries.images(chosen)
        margin = run.margins_of(images, who)
        none = torch.full_like(gone, size)
        first = none.scatter_reduce(0, own, torch.where(margin < state.low[who], place, size), "amin")
        taken = first < size
        gone = torch.where(taken, first + 1, gone)
        quiet = state.quiet[rows] + own.bincount(minlength=len(rows))
        state.quiet = state.quiet.index_copy(0, rows, torch.where(taken, 0, quiet))
        if tries.key is not None:
            state.tried[who, tries.key[chosen]] = number.int()
        winners = rows[taken]
        if len(winners):
            best = place == first[own]
            state.x = state.x.index_copy(0, winners, images[best])
            state.low = state.low.index_copy(0, winners, margin[best])
            state.tried[winners] = -1
            run.update_best(state.x, state.low)
    state.at = state.at.index_add(0, rows, gone)
