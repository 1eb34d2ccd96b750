"""Conditions of a GAN: classes as one-hot rows, numbers as Fourier features, and the distribution of each."""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.data import Columns

OCTAVES = 3
QUANTILES = 257


def as_tensor(column: Tensor | np.ndarray) -> Tensor:
    """A column as a tensor: itself, or a copy of the (memory-mapped) array."""
    return column if isinstance(column, Tensor) else torch.from_numpy(np.array(column))


class ClassCondition(nn.Module):
    """Labels (b,) int64 -> one-hot (b, classes). `marginal` holds the class frequencies, `seen` the count of labels."""

    column = "labels"

    def __init__(self, classes: int, balanced: bool):
        super().__init__()
        self.width, self.balanced = classes, balanced
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("marginal", torch.full((classes,), 1 / classes))

    def forward(self, labels: Tensor) -> Tensor:
        return F.one_hot(labels, self.width).float()

    @torch.no_grad()
    def observe(self, labels: Tensor) -> None:
        """Update the class frequencies with the labels of one batch."""
        self.seen += len(labels)
        self.marginal += (self._frequencies(labels) - self.marginal) * (len(labels) / self.seen)

    def _frequencies(self, labels: Tensor) -> Tensor:
        ones = torch.ones(len(labels), device=labels.device)  # counting by bincount would wait for the device
        return torch.zeros(self.width, device=labels.device).index_add_(0, labels, ones) / len(labels)

    def for_fakes(self, labels: Tensor, draws: torch.Generator) -> Tensor:
        """Labels for the fakes of a batch: its `labels` in random order, or uniform over the classes if `balanced`."""
        if self.balanced:
            return torch.randint(self.width, labels.shape, generator=draws, device=labels.device)
        return labels[torch.randperm(len(labels), generator=draws, device=labels.device)]

    def fit(self, train: Columns) -> None:
        """Set the class frequencies to those of the training data."""
        self.marginal.copy_(self._frequencies(as_tensor(train.columns[self.column])))

    def from_uniform(self, uniform: Tensor) -> Tensor:
        """Labels (b,) from uniform numbers (b,) in [0, 1), with the class frequencies."""
        return torch.searchsorted(self.marginal.cumsum(0), uniform, right=True).clamp_max(self.width - 1)


class NumberCondition(nn.Module):
    """Numbers (b,) float -> (b, 7): standardised, with sine and cosine of three octaves (Tancik et al. 2020)."""

    column = "targets"
    width = 1 + 2 * OCTAVES

    def __init__(self, balanced: bool):
        super().__init__()
        self.balanced = balanced
        self.register_buffer("moments", torch.zeros(3))  # count, mean, mean square
        self.register_buffer("quantiles", torch.zeros(QUANTILES))

    def forward(self, targets: Tensor) -> Tensor:
        _, mean, square = self.moments
        standard = (targets.float() - mean) / (square - mean.square()).clamp_min(1e-12).sqrt()
        octaves = 2.0 ** torch.arange(OCTAVES, device=targets.device)
        phases = standard[:, None] * octaves * (math.pi / 8)
        return torch.cat([standard[:, None], phases.sin(), phases.cos()], 1)

    @torch.no_grad()
    def observe(self, targets: Tensor) -> None:
        """Update mean, mean square and quantiles with the numbers of one batch (running means)."""
        targets, count = targets.float(), self.moments[0] + len(targets)
        share = len(targets) / count
        fresh = torch.stack([targets.mean(), targets.square().mean()])
        self.moments[1:] += (fresh - self.moments[1:]) * share
        self.quantiles += (self._quantiles(targets) - self.quantiles) * share
        self.moments[0] = count

    def _quantiles(self, targets: Tensor) -> Tensor:
        ordered = targets.double().sort().values
        position = torch.linspace(0, len(targets) - 1, QUANTILES, dtype=torch.float64, device=targets.device)
        low = position.floor().long()
        high = (low + 1).clamp_max(len(targets) - 1)
        return torch.lerp(ordered[low], ordered[high], position - low).float()

    def for_fakes(self, targets: Tensor, draws: torch.Generator) -> Tensor:
        """Numbers for the fakes of a batch: its `targets` in random order; if `balanced`, uniform over their range."""
        if self.balanced:
            share = torch.rand(targets.shape, generator=draws, device=targets.device)
            return torch.lerp(targets.min(), targets.max(), share)
        return targets[torch.randperm(len(targets), generator=draws, device=targets.device)]

    def fit(self, train: Columns) -> None:
        """Set the quantiles to those of the training data."""
        self.quantiles.copy_(self._quantiles(as_tensor(train.columns[self.column])))

    def from_uniform(self, uniform: Tensor) -> Tensor:
        """Numbers (b,) from uniform ones in [0, 1), by the inverse of their distribution function."""
        position = uniform * (QUANTILES - 1)
        low = position.floor().long()
        return torch.lerp(self.quantiles[low], self.quantiles[(low + 1).clamp_max(QUANTILES - 1)], position - low)
