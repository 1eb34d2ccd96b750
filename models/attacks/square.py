"""Square attack (Andriushchenko et al. 2020): random search with squares on the surface of the ball, scores only.

Each image has its own squares. The reference draws one position for the whole batch, so that an image's result there
depends on the other images.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from models.attacks.core import base as core
from models.attacks.core.norms import NORMS, TINY, expand_to
from models.attacks.core.run import AttackRun
from models.attacks.core.square_batching import SPAN, Candidates, search
from models.attacks.core.square_patches import BLOCK, MAX_KEYS, ball, patches, plan
from models.capabilities import Classifies, DetectsObjects, Segments

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries, out of 10,000, after which the fraction of pixels in a square halves (section 3.2)."""


def hill(height: int, width: int, norm: str) -> Tensor:
    """A pyramid of rectangles around the centre (appendix B), of norm 1."""
    bump = torch.zeros(height, width)
    top, left = height // 2, width // 2
    for ring in range(max(height // 2 + 1, width // 2 + 1)):
        rows = slice(max(top - ring, 0), min(top + ring + 1, height))
        columns = slice(max(left - ring, 0), min(left + ring + 1, width))
        bump[rows, columns] += 1 / (ring + 1) ** (2 if norm == "l2" else 4)
    return bump / (bump.norm() if norm == "l2" else bump.sum())


def window(side: int, norm: str) -> Tensor:
    """A square of two such pyramids with opposite signs, of norm 1."""
    if side < 2:
        return torch.ones(side, side)
    whole = torch.cat([hill(side // 2, side, norm), -hill(side - side // 2, side, norm)])
    return whole / (whole.norm() if norm == "l2" else whole.abs().sum())


class Square(core.Attack):
    name = "square"
    summary = "Random search with shrinking squares, from scores alone (Andriushchenko et al. 2020)"
    norms = ("linf", "l2", "l1")
    forwards = "queries + 3"
    backwards = "0"
    victims = (Classifies, Segments, DetectsObjects)
    access = "scores"

    class Config(core.Config):
        norm: Literal["linf", "l2", "l1"] = Field("linf", description="Norm of the perturbation.")
        queries: int = Field(5000, ge=1, le=100_000, description="Maximum queries per image.")
        share: float = Field(0.8, gt=0, le=1, description="Fraction of the pixels in the first squares.")
        rescale: bool = Field(True, description="Rescale the schedule, made for 10,000 queries, to `queries`.")

    def steps(self, run: AttackRun) -> Iterator[None]:
        state, linf = run.state, run.threat.norm == "linf"
        if linf:
            ball(run)
        state.x = self._stripes(run) if linf else self._tiles(run)
        state.low = run.evaluate(state.x)
        yield
        if linf and run.compact and run.access.level == 2 and run.budget is None:
            kinds = run.x[0, 0].numel() * 2 ** run.x.shape[1]
            keys = kinds if kinds <= MAX_KEYS else 0
            yield from search(run, self.config.queries - 1, keys, lambda *tries: self._candidates(run, *tries))
            return
        for number in range(self.config.queries - 1):
            y = self._recolour(run, number) if linf else self._move(run, number, self._side(run, number))
            margin = run.evaluate(y)
            better = margin < state.low
            state.low = torch.where(better, margin, state.low)
            state.x = torch.where(expand_to(better, y), y, state.x)
            yield

    def _side(self, run: AttackRun, number: int) -> int:
        """The side of square `number` in pixels: sqrt(share * height * width) with the share of the schedule."""
        turn = number * 10_000 // self.config.queries if self.config.rescale else number
        share = self.config.share / 2 ** sum(turn > limit for limit in HALVINGS)
        height, width = run.x.shape[2:]
        side = max(round((share * height * width) ** 0.5), 1 if run.threat.norm == "linf" else 3)
        side += run.threat.norm != "linf" and side % 2 == 0
        return min(side, height, width)

    def _stripes(self, run: AttackRun) -> Tensor:
        """Initial perturbation for linf: vertical stripes of width 1 with random signs."""
        channels, _, width = run.x.shape[1:]
        return run.threat.project(
            run.x, run.x + run.rng.signs((channels, 1, width), "stripes") * expand_to(run.radius, run.x)
        )

    def _recolour(self, run: AttackRun, number: int) -> Tensor:
        """One square per image, moved to the surface of the ball in each channel (algorithm 2)."""
        if number % BLOCK == 0:
            self._plan(run, number, BLOCK)
        rows = torch.arange(len(run.x), device=run.x.device)
        return patches(run, rows, torch.full_like(rows, number)).images(rows)

    def _candidates(self, run: AttackRun, rows: Tensor, numbers: Tensor, start: int) -> Candidates:
        """Several squares of each row, all in the span that begins at `start`."""
        state = run.state
        if getattr(state, "start", None) != start:
            self._plan(run, start, SPAN)
        squares, tries = patches(run, rows, numbers), numbers - start
        kind = state.kind[rows, tries] if state.tried.shape[1] else None
        return Candidates(squares.moves, kind, state.layout.since[tries], squares.images)

    def _plan(self, run: AttackRun, start: int, count: int) -> None:
        plan(run, start, [self._side(run, number) for number in range(start, start + count)])

    def _tiles(self, run: AttackRun) -> Tensor:
        """Initial perturbation: windows of a fifth of the image's side in a grid, with random signs."""
        channels, height, width = run.x.shape[1:]
        side, delta = max(min(height, width) // 5, 1), torch.zeros_like(run.x)
        tile = window(side, run.threat.norm).to(delta.device)
        for top in range(height % side // 2, height - side + 1, side):
            for left in range(width % side // 2, width - side + 1, side):
                sign = run.rng.signs((channels, 1, 1), "tile", top, left)
                flip = run.rng.signs((1, 1, 1), "turn", top, left) > 0
                delta[:, :, top : top + side, left : left + side] = sign * torch.where(flip, tile, tile.T)
        return self._scaled(run, delta)

    def _scaled(self, run: AttackRun, delta: Tensor) -> Tensor:
        if run.threat.norm == "l2":
            delta = delta * expand_to(run.radius / run.threat.geometry.size(delta).clamp_min(TINY), delta)
        return run.threat.project(run.x, run.x + run.threat.masked(delta))

    def _move(self, run: AttackRun, number: int, side: int) -> Tensor:
        """Moves the mass of one window, and the unused part of eps, into another window (algorithm 3)."""
        norm, delta = NORMS[run.threat.norm], run.state.x - run.x
        channels, height, width = run.x.shape[1:]
        p = 2 if norm.name == "l2" else 1
        if number % BLOCK == 0:
            run.state.uniforms = run.rng.uniform((BLOCK, 5 + channels), "windows", number)
        draw = run.state.uniforms[:, number % BLOCK]
        corner = (draw[:, :4] * torch.tensor([height - side + 1, width - side + 1] * 2, device=draw.device)).long()
        here, there = self._window(corner[:, :2], channels, side), self._window(corner[:, 2:], channels, side)
        both = torch.zeros_like(delta)
        both[here], both[there] = 1, 1
        mass = (delta * both).norm(p=p, dim=(2, 3), keepdim=True)
        old = delta[here] / delta[here].norm(p=p, dim=(2, 3), keepdim=True).clamp_min(1e-12)
        tile = window(side, norm.name).to(delta.device)
        flip = draw[:, 4, None, None, None] > 0.5
        new = old + torch.where(flip, tile, tile.T) * (draw[:, 5:, None, None] - 0.5).sign()
        left = (expand_to(run.radius, delta) ** p - expand_to(norm.size(delta), delta) ** p).clamp_min(0)
        length = (left / channels + mass**2).sqrt() if p == 2 else left / channels + mass
        delta = delta.clone()
        delta[there] = 0
        delta[here] = new / new.norm(p=p, dim=(2, 3), keepdim=True).clamp_min(1e-12) * length
        return self._scaled(run, delta)

    def _window(self, corner: Tensor, channels: int, side: int) -> tuple[Tensor, ...]:
        """Index (N, C, side, side) of the window whose top left pixel is `corner` (N, 2)."""
        span = torch.arange(side, device=corner.device)
        rows = (corner[:, 0, None] + span)[:, None, :, None]
        columns = (corner[:, 1, None] + span)[:, None, None, :]
        image = torch.arange(len(corner), device=corner.device)[:, None, None, None]
        channel = torch.arange(channels, device=corner.device)[None, :, None, None]
        return image, channel, rows, columns
