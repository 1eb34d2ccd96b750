"""A plane in latent space: codes are projected to two coordinates, and points lifted back."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Plane:
    """`centre` (d,), orthonormal `axes` (2, d), and `spread` (2,), the standard deviation of codes along them.

    The axes of codes of one or two numbers are the coordinate axes; a direction without variance is an axis of zeros.
    """

    centre: Tensor
    axes: Tensor
    spread: Tensor
    explained: float = 1.0
    """Share of the variance of the codes in the plane, in [0, 1]."""

    @classmethod
    def standard(cls, latent_dim: int, device: torch.device | str = "cpu") -> Self:
        """The plane of standard normal codes of one or two numbers: the coordinate axes."""
        axes = torch.eye(2, latent_dim, device=device)
        return cls(torch.zeros(latent_dim, device=device), axes, axes.norm(dim=1))

    @classmethod
    def through(cls, codes: Tensor) -> Self:
        """The plane of greatest variance of codes (n, d), by PCA."""
        centred = (codes - codes.mean(0)).double()
        total = centred.square().sum()
        if codes.shape[1] <= 2:
            axes = torch.eye(2, codes.shape[1], dtype=torch.float64)
            return cls(torch.zeros(codes.shape[1]), axes.float(), (centred @ axes.T).std(0, correction=0).float())
        axes = torch.zeros(2, codes.shape[1], dtype=torch.float64)
        if total > 0:
            leading = _leading(centred)
            axes[: len(leading)] = leading
        places = centred @ axes.T
        explained = float(places.square().sum() / total) if total > 0 else 1.0
        return cls(codes.mean(0), axes.float(), places.std(0, correction=0).float(), explained)

    @classmethod
    def scaled(cls, centre: Tensor, axes: Tensor) -> Self:
        """From orthogonal axes (k, d) whose lengths are the standard deviations of codes along them, longest first."""
        width = axes.shape[1]
        if width <= 2:  # the coordinate axes
            spread = torch.cat([axes.square().sum(0).sqrt(), axes.new_zeros(2 - width)])
            return cls(centre, torch.eye(2, width, device=axes.device), spread)
        axes = torch.cat([axes[:2], axes.new_zeros(max(0, 2 - len(axes)), width)])
        spread = axes.norm(dim=1)
        return cls(centre, axes / spread.clamp_min(1e-12)[:, None], spread)

    def place(self, codes: Tensor) -> Tensor:
        """Coordinates of codes: (n, d) -> (n, 2)."""
        return (codes - self.centre) @ self.axes.T

    def lift(self, points: Tensor) -> Tensor:
        """Codes in the plane at these coordinates: (n, 2) -> (n, d)."""
        return self.centre + points @ self.axes


def _leading(centred: Tensor) -> Tensor:
    """Up to two axes (k, d) of greatest variance of rows (n, d), signed so that their largest component is positive."""
    count, width = centred.shape
    if width <= count:
        vectors = torch.linalg.eigh(centred.T @ centred)[1].flip(1)[:, :2].T
    else:  # the smaller matrix
        values, left = torch.linalg.eigh(centred @ centred.T)
        nonzero = values.flip(0)[:2] > 1e-12 * values[-1]
        vectors = (left.flip(1)[:, :2].T @ centred)[nonzero]
        vectors = vectors / vectors.norm(dim=1, keepdim=True)
    signs = vectors.gather(1, vectors.abs().argmax(1, keepdim=True)).sign()
    return vectors * torch.where(signs == 0, 1.0, signs)
