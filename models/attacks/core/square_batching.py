"""Square's random search with several squares of an image evaluated in one forward pass.

The result is that of the sequential search: squares are tried in order, each on the best image so far. Squares after
an accepted one are evaluated again; few are accepted, so little is lost. Squares that change nothing, or that were
tried on the same image already, are skipped, because their result is known.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from models.attacks.core.run import AttackRun


@dataclass(frozen=True)
class Candidates:
    """Candidate squares (p,) of some rows.

    `moves` (p,): whether each changes its row's image. `key` (p,): a number that is equal for squares with the same
    effect, or None where repeats are not tracked. `since` (p,): the first try from which that number means the same.
    `images` makes the images (k, C, H, W) of the squares at given positions (k,).
    """

    moves: Tensor
    key: Tensor | None
    since: Tensor
    images: Callable[[Tensor], Tensor]


MakeCandidates = Callable[[Tensor, Tensor, int], Candidates]
"""Rows (p,), numbers of their tries (p,), first number of the span -> these candidates."""
MAX_PER_IMAGE, FREE_IMAGES, MAX_IMAGES = 64, 48, 384
"""Maximum tries of one image in a pass; images of a pass that cost little more than one; maximum images of a pass."""
FAILURES_PER_TRY = 2
"""An image gets one more try in a pass for this many tries since its last success."""
MAX_SKIPPED = 4
"""Maximum candidates generated per candidate evaluated: late in a search most change nothing or are repeats."""
SPAN = 2048
"""Tries within which images may be at different positions."""


def search(run: AttackRun, total: int, keys: int, make_candidates: MakeCandidates) -> Iterator[None]:
    """Tries 0 .. total - 1 of every row, from `state.x` with the margin `state.low`. Yields after each pass.

    `keys` is the number of different candidate keys; 0: repeats are not tracked.
    """
    state = run.state
    state.quiet, state.share = torch.zeros_like(run.queries), [1.0]  # a list, because it has no entry per row
    state.tried = torch.full((len(run.x), keys), -1, dtype=torch.int32, device=run.x.device)
    for start in range(0, total, SPAN):
        size, state.at = min(SPAN, total - start), torch.zeros_like(run.queries)
        while True:
            rows = (~run.done & (state.at < size)).nonzero()[:, 0]
            if not len(rows):
                break
            _advance(run, rows, start, size, make_candidates)
            yield


def _advance(run: AttackRun, rows: Tensor, start: int, size: int, make_candidates: MakeCandidates) -> None:
    """One pass: each row moves past its first successful try among the next ones, or past all of them."""
    state, at = run.state, run.state.at[rows]
    least, limit = (max(1, count // len(rows)) for count in (FREE_IMAGES, MAX_IMAGES))
    most = (least + state.quiet[rows] // FAILURES_PER_TRY).clamp_max(min(MAX_PER_IMAGE, limit))
    spans = (most / state.share[0]).long().minimum(size - at)
    ends = spans.cumsum(0)
    own = torch.arange(len(rows), device=rows.device).repeat_interleave(spans)
    place = torch.arange(len(own), device=rows.device) - (ends - spans)[own]
    who, number = rows[own], start + at[own] + place
    candidates = make_candidates(who, number, start)
    useful = candidates.moves
    if candidates.key is not None:
        useful = useful & (state.tried[who, candidates.key] < candidates.since)
    state.share[0] = max(float(useful.float().mean()), 1 / MAX_SKIPPED)
    before = useful.cumsum(0) - useful.long()
    rank = before - before[ends - spans][own]  # among the useful tries of the same row
    selected = (useful & (rank < most[own])).nonzero()[:, 0]
    # a row without a success continues with its first useful try that was left for the next pass
    gone = spans.scatter_reduce(0, own, torch.where(useful & (rank >= most[own]), place, size), "amin")
    if len(selected):
        own, who, place, number = own[selected], who[selected], place[selected], number[selected]
        images = candidates.images(selected)
        margin = run.margins_of(images, who)
        none = torch.full_like(gone, size)
        first = none.scatter_reduce(0, own, torch.where(margin < state.low[who], place, size), "amin")
        success = first < size
        gone = torch.where(success, first + 1, gone)
        quiet = state.quiet[rows] + own.bincount(minlength=len(rows))
        state.quiet = state.quiet.index_copy(0, rows, torch.where(success, 0, quiet))
        if candidates.key is not None:
            state.tried[who, candidates.key[selected]] = number.int()
        winners = rows[success]
        if len(winners):
            best = place == first[own]
            state.x = state.x.index_copy(0, winners, images[best])
            state.low = state.low.index_copy(0, winners, margin[best])
            state.tried[winners] = -1
            run.update_best(state.x, state.low)
    state.at = state.at.index_add(0, rows, gone)
