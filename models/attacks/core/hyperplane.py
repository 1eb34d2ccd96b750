"""Projection onto a hyperplane inside the pixel range, in each norm: the inner step of FAB (Croce & Hein 2020).

Masks are floats: on a CPU selecting by booleans takes twenty times as long as a product.
"""

import torch
from torch import Tensor

from models.attacks.core.norms import TINY


def water_level(weight: Tensor, cap: Tensor, total: Tensor) -> Tensor:
    """(N, 1): the t at which sum(weight * min(t, cap)) = `total` (N,), infinite if there is none.

    The sum is concave and piecewise linear in t, so Newton's method from 0 increases monotonically and is exact once
    it reaches the right piece.
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
    """(N, D): 0 <= d <= room with sum(weight * d) = `total` and the smallest sum of d: largest weights first."""
    order = weight.argsort(dim=1, descending=True, stable=True)
    gain = (weight * room).gather(1, order)
    before = gain.cumsum(1) - gain
    share = ((total[:, None] - before) / gain.clamp_min(TINY)).clamp(0, 1)
    return torch.zeros_like(room).scatter(1, order, share * room.gather(1, order))


def step_to(x: Tensor, normal: Tensor, value: Tensor, norm: str) -> Tensor:
    """The smallest d in `norm` with <normal, d> = -value and x + d in [0, 1].

    Where no d reaches the hyperplane, the d that comes closest. `x` and `normal` are (N, D), `value` (N,).
    """
    normal = normal * torch.where(value >= 0, 1.0, -1.0)[:, None]
    weight, total = normal.abs(), value.abs()
    mask = torch.empty_like(weight)
    weight = weight * torch.gt(weight, 1e-12 * weight.amax(1, keepdim=True), out=mask)
    room = torch.lerp(1 - x, x, torch.gt(normal, 0, out=mask)).clamp_min(0) * torch.gt(weight, 0, out=mask)
    if norm == "linf":
        # |d_i| = min(t, room_i)
        size = torch.minimum(water_level(weight, room, total), room)
    elif norm == "l2":
        # |d_i| = min(t * weight_i, room_i)
        t = water_level(weight.square(), room / weight.clamp_min(TINY), total)
        size = torch.minimum((t * weight).nan_to_num(0, torch.inf), room)
    else:
        size = greedy(weight, room, total)
    return -normal.sign() * size
