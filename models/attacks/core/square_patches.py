"""The squares that Square's search tries in linf: drawn for many tries of all rows at once, painted where they land.

A try paints one square, a colour for each channel, to the edge of the ball. Only the pixels of the squares are
computed: late in the search they are few.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.attacks.core.norms import expand_to
from models.attacks.core.run import AttackRun

BLOCK = 64
"""Tries whose random numbers are drawn together: drawing them one by one costs more than a forward pass."""
MAX_KEYS = 1 << 16
"""Maximum number of positions times colours for which tried squares are tracked."""


@dataclass(frozen=True)
class Layout:
    """What the tries of all rows share.

    `sides`: the side of each try. `since`: the first try with the present side. `kind`: index of the side in `pixels`,
    which holds the pixel offsets of a square of each side, the last one repeated up to the largest square.
    """

    sides: Tensor
    since: Tensor
    kind: Tensor
    pixels: Tensor


def ball(run: AttackRun) -> None:
    """The bounds of each pixel: `state.floor` and `state.ceiling`."""
    state, x, eps = run.state, run.x, expand_to(run.radius, run.x)
    state.floor, state.ceiling = (x - eps).clamp_min(0), (x + eps).clamp_max(1)
    if run.threat.mask is not None:
        free = run.threat.mask.expand_as(x).bool()
        state.floor, state.ceiling = torch.where(free, state.floor, x), torch.where(free, state.ceiling, x)


def plan(run: AttackRun, start: int, sides: list[int]) -> None:
    """Draw the tries from number `start`, a multiple of BLOCK, with squares of these sides."""
    state, x, device = run.state, run.x, run.x.device
    channels, height, width = x.shape[1:]
    blocks = range(start, start + len(sides), BLOCK)
    parts = [run.rng.uniform((BLOCK, 2 + channels), "squares", number) for number in blocks]
    draw = torch.cat(parts, 1)[:, : len(sides)]
    side = torch.tensor(sides, device=device)
    room = torch.tensor([height, width], device=device) - side[:, None] + 1
    corner = (draw[..., :2] * room).long()
    state.corner = corner[..., 0] * width + corner[..., 1]
    signs = (draw[..., 2:] - 0.5).sign()
    state.paint = signs * (2 * run.radius)[:, None, None]
    bits = (signs > 0) * 2 ** torch.arange(channels, device=device)
    state.kind = state.corner * 2**channels + bits.sum(2)
    state.start, state.layout = start, _layout(sides, start, getattr(state, "layout", None), width, device)


def _layout(sides: list[int], start: int, before: Layout | None, width: int, device: torch.device) -> Layout:
    since = []
    for place, side in enumerate(sides):
        last = sides[place - 1] if place else (None if before is None else int(before.sides[-1]))
        old = since[-1] if place else (None if before is None else int(before.since[-1]))
        since.append(old if side == last else start + place)
    kinds = sorted(set(sides))
    pixels = torch.zeros(len(kinds), max(kinds) ** 2, dtype=torch.int64)
    for row, side in enumerate(kinds):
        step = torch.arange(side)
        inside = (step[:, None] * width + step).flatten()
        pixels[row, : side**2], pixels[row, side**2 :] = inside, inside[-1]
    kind = [kinds.index(side) for side in sides]
    return Layout(*(torch.tensor(column, device=device) for column in (sides, since, kind)), pixels.to(device))


@dataclass(frozen=True)
class Patches:
    """Squares on the current images of `rows` (p,): indices of their pixels (p, C, k) in an image, and new values."""

    run: AttackRun
    rows: Tensor
    places: Tensor
    after: Tensor
    moves: Tensor
    """(p,): squares that change the image."""

    def images(self, some: Tensor) -> Tensor:
        """The images (n, C, H, W) of the patches at `some` (n,)."""
        images = self.run.state.x[self.rows[some]]
        flat = images.flatten(1)
        flat.scatter_(1, self.places[some].flatten(1), self.after[some].flatten(1))
        return flat.view_as(images)


def patches(run: AttackRun, rows: Tensor, numbers: Tensor) -> Patches:
    """The tries `numbers` (p,) of `rows` (p,), drawn by `plan`."""
    state, layout, x = run.state, run.state.layout, run.x
    tries = numbers - state.start
    most = int(layout.sides[tries].max())
    pixels = layout.pixels[layout.kind[tries], : most**2] + state.corner[rows, tries][:, None]
    channel = torch.arange(x.shape[1], device=x.device) * x[0, 0].numel()
    places = pixels[:, None] + channel[:, None]
    here = (places + (rows * x[0].numel())[:, None, None]).flatten()
    now, floor, ceiling = (
        values.reshape(-1).index_select(0, here).view_as(places) for values in (state.x, state.floor, state.ceiling)
    )
    after = torch.clamp(now + state.paint[rows, tries][..., None], floor, ceiling)
    return Patches(run, rows, places, after, (after != now).flatten(1).any(1))
