"""The shortest way to a hyperplane inside the pixel range, in each norm: the inner step of FAB.

Masks are numbers: on a CPU a choice by booleans takes twenty times as long as a product.
"""

import torch
from torch import Tensor

from models.attacks.core.norms import TINY


def level(weight: Tensor, cap: Tensor, total: Tensor) -> Tensor:
    """(N, 1): the level t at which the sum of weight * min(t, cap) reaches `total` (N,), infinite if it never does.

    The sum is concave and piecewise linear in t, so Newton's steps from 0 climb to t and end on its very piece.
    """
    t, total = torch.zeros_like(total)[:, None], total[:, None]
    full, mask, part = weight * cap, torch.empty_like(cap), torch.empty_like(cap)
    for _ in range(cap.shape[1] + 1):
        torch.gt(cap, t, out=mask)
        slope = torch.mul(weight, mask, out=part).sum(1, keepdim=True)
        filled = torch.mul(full, torch.sub(1, mask, out=mask), out=part).sum(1, keepdim=True)
        new = torch.where(slope > 0, ((total - filled) / slope.clamp_min(TINY)).maximum(t), t)
        if not bool((new > t).any()):
            break
        t = new
    reached = full.sum(1, keepdim=True) >= total
    return torch.where(reached | (slope > 0), t, torch.inf)


def greedy(weight: Tensor, room: Tensor, total: Tensor) -> Tensor:
    """How far each pixel goes for the sum of weight * way to reach `total` in the least length: heaviest first."""
    order = weight.argsort(dim=1, descending=True, stable=True)
    gain = (weight * room).gather(1, order)
    before = gain.cumsum(1) - gain
    share = ((total[:, None] - before) / gain.clamp_min(TINY)).clamp(0, 1)
    return torch.zeros_like(room).scatter(1, order, share * room.gather(1, order))


def step_to(x: Tensor, normal: Tensor, value: Tensor, norm: str) -> Tensor:
    """The shortest d with normal . d = -value and x + d in [0, 1]; all the way that there is, where that falls short.

    x and normal are (N, D), value (N,).
    """
    normal = normal * torch.where(value >= 0, 1.0, -1.0)[:, None]
    weight, total = normal.abs(), value.abs()
    mask = torch.empty_like(weight)
    weight = weight * torch.gt(weight, 1e-12 * weight.amax(1, keepdim=True), out=mask)
    room = torch.lerp(1 - x, x, torch.gt(normal, 0, out=mask)).clamp_min(0) * torch.gt(weight, 0, out=mask)
    if norm == "linf":
        way = torch.minimum(level(weight, room, total), room)
    elif norm == "l2":
        t = level(weight.square(), room / weight.clamp_min(TINY), total)
        way = torch.minimum((t * weight).nan_to_num(0, torch.inf), room)
    else:
        way = greedy(weight, room, total)
    return -normal.sign() * way
