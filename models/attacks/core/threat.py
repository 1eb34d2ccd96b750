"""What an attacker may do to an image: a norm, a radius, the pixel range, 8-bit levels, a mask."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.attacks.core.norms import L1, NORMS, Norm, expand_to
from models.types import ConfigError

SLACK = 1e-6
"""How far float rounding may carry a perturbation over its radius."""


def check_eps(norm: str, smallest: float, largest: float) -> None:
    """Raises ConfigError unless radii between these make sense."""
    if not 0 <= smallest <= largest < math.inf:
        raise ConfigError("eps must be a finite number of at least 0", field="eps")
    if norm == "linf" and largest > 1:
        raise ConfigError("eps must be at most 1: pixels lie in [0, 1]", field="eps", remedy="try 8/255")


@dataclass(frozen=True)
class ThreatModel:
    """`eps` is a number, (N,) or None (no radius: the smallest perturbation is sought).

    `levels` = 256 makes the result an 8-bit image whose success is tested after rounding; None leaves floats.
    `mask` (N or 1, C or 1, H, W) is 1 where pixels may change.
    """

    norm: str = "linf"
    eps: float | Tensor | None = None
    levels: int | None = None
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ConfigError(f"the norm must be one of {', '.join(NORMS)}", field="norm")
        if isinstance(self.eps, (int, float)):
            check_eps(self.norm, self.eps, self.eps)

    @property
    def geometry(self) -> Norm:
        return NORMS[self.norm]

    @property
    def bounded(self) -> bool:
        return self.eps is not None

    def radius(self, x: Tensor) -> Tensor:
        """(N,) radius for the images `x`; infinite without eps."""
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
        """(N,) size of y - x."""
        return self.geometry.size(y - x)

    def masked(self, values: Tensor) -> Tensor:
        """`values` (N, C, H, W) or (N, k, C, H, W) where pixels may change, 0 elsewhere."""
        if self.mask is None:
            return values
        return values * (self.mask if values.ndim == 4 else self.mask[:, None])

    def project(self, x: Tensor, y: Tensor) -> Tensor:
        """The image nearest to `y` that this threat allows to be made of `x` (nearly so for l2 and l0)."""
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
        # The box holds x, so clipping to it only shortens the perturbation.
        return (x + self.geometry.project(y - x, self.radius(x))).clamp(0, 1)

    def quantise(self, x: Tensor, y: Tensor) -> Tensor:
        """`y` rounded to the levels without leaving the ball around `x`; the division is that of reading a PNG."""
        if self.levels is None:
            return y
        top = self.levels - 1
        if self.norm == "linf" and self.bounded:
            eps = expand_to(self.radius(x), x)
            low = ((x - eps).clamp_min(0) * top - 1e-3).ceil()
            high = ((x + eps).clamp_max(1) * top + 1e-3).floor()
            snapped = torch.clamp((y * top).round(), low, torch.maximum(low, high)) / top
        else:
            snapped = (y * top).round() / top
            for shrink in range(1, 65) if self.bounded else ():
                over = self.distance(x, snapped) > self.radius(x) * (1 + SLACK)
                if not bool(over.any()):
                    break
                shorter = ((x + (y - x) * (1 - shrink / 64)) * top).round() / top
                snapped = torch.where(expand_to(over, x), shorter, snapped)
        still = expand_to((y == x).flatten(1).all(1), x) if self.mask is None else (y == x)
        return torch.where(still, x, snapped)
