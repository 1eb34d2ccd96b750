"""What an attacker may change: norm, eps, pixel range, 8-bit levels, mask."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.attacks.core.norms import L1, NORMS, Norm, expand_to
from models.types import ConfigError

SLACK = 1e-6
"""Tolerance for float rounding when a perturbation is compared with its radius."""


def check_eps(norm: str, smallest: float, largest: float) -> None:
    """Raises ConfigError unless all radii from `smallest` to `largest` are valid."""
    if not 0 <= smallest <= largest < math.inf:
        raise ConfigError(f"eps must be a finite number of at least 0; you sent {smallest:g}", field="eps")
    if norm == "linf" and largest > 1:
        raise ConfigError(
            f"eps must be at most 1 for linf, because pixels lie in [0, 1]; you sent {largest:g}",
            field="eps",
            remedy="try 8/255",
        )


@dataclass(frozen=True)
class ThreatModel:
    """`eps` is a number, (N,) or None (no radius: the smallest perturbation is sought).

    `levels` = 256: results are 8-bit images and success is tested after rounding; None: results are floats.
    `mask` (N or 1, C or 1, H, W) is 1 where pixels may change.
    """

    norm: str = "linf"
    eps: float | Tensor | None = None
    levels: int | None = None
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ConfigError(f"norm must be one of {', '.join(NORMS)}; you sent {self.norm}", field="norm")
        if isinstance(self.eps, (int, float)):
            check_eps(self.norm, self.eps, self.eps)

    @property
    def geometry(self) -> Norm:
        return NORMS[self.norm]

    @property
    def bounded(self) -> bool:
        return self.eps is not None

    def radius(self, x: Tensor) -> Tensor:
        """(N,): eps of the images `x`; infinite without eps."""
        eps = torch.inf if self.eps is None else self.eps
        return torch.as_tensor(eps, dtype=x.dtype, device=x.device).expand(len(x))

    def take(self, index: Tensor) -> "ThreatModel":
        """The threat to the rows at `index`."""
        eps = self.eps[index] if isinstance(self.eps, Tensor) and self.eps.ndim else self.eps
        mask = self.mask[index] if self.mask is not None and len(self.mask) > 1 else self.mask
        return replace(self, eps=eps, mask=mask)

    def at(self, eps: float | Tensor | None) -> "ThreatModel":
        """The same threat with another radius."""
        return replace(self, eps=eps)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """(N,): the norm of y - x."""
        return self.geometry.size(y - x)

    def masked(self, values: Tensor) -> Tensor:
        """`values` (N, C, H, W) or (N, k, C, H, W) where pixels may change, 0 elsewhere."""
        if self.mask is None:
            return values
        return values * (self.mask if values.ndim == 4 else self.mask[:, None])

    def project(self, x: Tensor, y: Tensor) -> Tensor:
        """The allowed image closest to `y` (approximately for l2 and l0): within eps of `x`, in [0, 1] and the mask."""
        if self.mask is not None:
            y = torch.where(self.mask.bool(), y, x)
        if not self.bounded:
            return y.clamp(0, 1)
        if self.norm == "linf":
            eps = expand_to(self.radius(x), x)
            return torch.clamp(y, (x - eps).clamp_min(0), (x + eps).clamp_max(1))
        if self.norm == "l1":
            room = torch.where(y > x, 1 - x, x)
            return (x + L1().project_within(y - x, self.radius(x), room)).clamp(0, 1)
        # x lies in the box, so clipping to it only shortens the perturbation.
        return (x + self.geometry.project(y - x, self.radius(x))).clamp(0, 1)

    def quantise(self, x: Tensor, y: Tensor) -> Tensor:
        """`y` rounded to the levels, inside the ball around `x`; the division gives the floats of a decoded PNG."""
        if self.levels is None:
            return y
        top = self.levels - 1
        if self.norm == "linf" and self.bounded:
            eps = expand_to(self.radius(x), x)
            low = ((x - eps).clamp_min(0) * top - 1e-3).ceil()
            high = ((x + eps).clamp_max(1) * top + 1e-3).floor()
            rounded = torch.clamp((y * top).round(), low, torch.maximum(low, high)) / top
        else:
            rounded = (y * top).round() / top
            for shrink in range(1, 65) if self.bounded else ():
                over = self.distance(x, rounded) > self.radius(x) * (1 + SLACK)
                if not bool(over.any()):
                    break
                shorter = ((x + (y - x) * (1 - shrink / 64)) * top).round() / top
                rounded = torch.where(expand_to(over, x), shorter, rounded)
        unchanged = expand_to((y == x).flatten(1).all(1), x) if self.mask is None else (y == x)
        return torch.where(unchanged, x, rounded)
