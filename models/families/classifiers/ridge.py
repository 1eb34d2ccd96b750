"""Ridge regression on the mean brightness of patches, which networks with normalised features cannot represent."""

import torch
from torch import Tensor, nn

from models.nn.encoders import Rescale, pyramid

PENALTIES = torch.logspace(-6, 2, 17, dtype=torch.float64)
"""Candidate penalties, as fractions of the largest squared singular value."""


class PatchRidge(nn.Module):
    """(B, C, H, W) in [0, 1] -> (B,): ridge regression on the means of about 4x4 patches."""

    def __init__(self, shape: tuple[int, int, int]):
        super().__init__()
        grid = pyramid(*shape[1:])[-1]
        for name, side, parts in zip(("down", "across"), shape[1:], grid, strict=True):
            pooling = nn.functional.adaptive_avg_pool1d(torch.eye(side), parts)  # a matrix, which ONNX can export
            self.register_buffer(name, pooling, persistent=False)
        self.centre = Rescale()
        self.register_buffer("weight", torch.zeros(shape[0] * grid[0] * grid[1]))
        self.register_buffer("bias", torch.zeros(()))

    def patches(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C * rows * columns), in [-1, 1]."""
        return (self.down.T @ self.centre(images) @ self.across).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        return self.patches(images) @ self.weight + self.bias

    def fit(self, patches: Tensor, targets: Tensor) -> None:
        """Fit to patches (N, P) and targets (N,), N >= 3.

        The penalty minimises the leave-one-out error (PRESS, Allen 1974); if predicting the mean is no worse, the
        weights stay zero.
        """
        rows, targets = patches.double(), targets.double()
        centre, mean = rows.mean(0), targets.mean()
        u, s, v = torch.linalg.svd(rows - centre, full_matrices=False)
        projected, best = u.T @ (targets - mean), (targets - mean).square().mean()
        for penalty in PENALTIES.to(rows.device) * s[0].square().clamp_min(1e-12):
            shrinkage = s.square() / (s.square() + penalty)
            leverage = u.square() @ shrinkage + 1 / len(rows)
            residual = targets - mean - u @ (shrinkage * projected)
            error = (residual / (1 - leverage).clamp_min(1e-6)).square().mean()  # PRESS / N
            if error < best:
                best, weight = error, v.T @ (s / (s.square() + penalty) * projected)
                self.weight.copy_(weight)
                self.bias.copy_(mean - centre @ weight)
