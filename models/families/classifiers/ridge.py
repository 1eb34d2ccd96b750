"""A linear answer to how bright a picture is, and where: what networks that normalise their features forget."""

import torch
from torch import Tensor, nn

from models.nn.encoders import Centre, pyramid

PENALTIES = torch.logspace(-6, 2, 17, dtype=torch.float64)
"""Ridge penalties to choose from, as shares of the largest squared singular value."""


class Level(nn.Module):
    """(b, c, h, w) in [0, 1] -> (b,): ridge regression on the means of patches, about 4x4 of them."""

    def __init__(self, shape: tuple[int, int, int]):
        super().__init__()
        grid = pyramid(*shape[1:])[-1]
        for name, side, parts in zip(("down", "across"), shape[1:], grid, strict=True):
            picks = nn.functional.adaptive_avg_pool1d(torch.eye(side), parts)  # a matrix: any grid can be exported
            self.register_buffer(name, picks, persistent=False)
        self.centre = Centre()
        self.register_buffer("weight", torch.zeros(shape[0] * grid[0] * grid[1]))
        self.register_buffer("bias", torch.zeros(()))

    def patches(self, images: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c * rows * columns), around zero."""
        return (self.down.T @ self.centre(images) @ self.across).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        return self.patches(images) @ self.weight + self.bias

    def fit(self, patches: Tensor, wanted: Tensor) -> None:
        """From patches (n, p) and answers (n,), n at least 3. The penalty is the one of the least error on rows left
        out one at a time (Allen 1974); where that is no less than that of the mean, the answer stays zero."""
        rows, answers = patches.double(), wanted.double()
        centre, middle = rows.mean(0), answers.mean()
        u, s, v = torch.linalg.svd(rows - centre, full_matrices=False)
        along, best = u.T @ (answers - middle), (answers - middle).square().mean()
        for penalty in PENALTIES.to(rows.device) * s[0].square().clamp_min(1e-12):
            kept = s.square() / (s.square() + penalty)
            leverage = u.square() @ kept + 1 / len(rows)
            error = ((answers - middle - u @ (kept * along)) / (1 - leverage).clamp_min(1e-6)).square().mean()
            if error < best:
                best, weight = error, v.T @ (s / (s.square() + penalty) * along)
                self.weight.copy_(weight)
                self.bias.copy_(middle - centre @ weight)
