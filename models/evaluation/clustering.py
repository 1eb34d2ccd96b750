"""Clusters of codes: k-means, or a Gaussian mixture with diagonal covariances; fitted once, then assigned to."""

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from models.types import ReportArtefact

Method = Literal["kmeans", "gmm"]
REACH_QUANTILE = 0.99
MAX_VALUES = 4_000_000  # in one (rows, clusters, dimensions) block


@dataclass(frozen=True)
class Clustering:
    """Codes are standardised by `mean` and `spread` (D,). `centres` and `variances` are (K, D), `shares` (K,).

    k-means has unit variances and equal shares. `reach` (K,) is the 99 % quantile of the distances of a cluster's own
    codes from its centre.
    """

    method: Method
    mean: Tensor
    spread: Tensor
    centres: Tensor
    variances: Tensor
    shares: Tensor
    reach: Tensor

    @classmethod
    def fit(cls, codes: Tensor, count: int, method: Method, seed: int) -> Self:
        """Fit `count` clusters to codes (N, D), N > count, reproducibly for a seed; fewer if codes are equal."""
        mean, spread = codes.mean(0), codes.std(0, correction=0)
        spread = torch.where(spread > 1e-8, spread, torch.ones_like(spread))
        points = ((codes - mean) / spread).numpy().astype(np.float64)
        count = min(count, len(np.unique(points, axis=0)))
        centres, variances, shares = _fitted(points, count, method, seed % 2**32)
        tensors = [torch.from_numpy(np.ascontiguousarray(array)).float() for array in (centres, variances, shares)]
        draft = cls(method, mean, spread, *tensors, reach=torch.zeros(count))
        groups, distances, _ = draft.assign(codes)
        inside = [distances[groups == group] for group in range(count)]
        reach = torch.stack([d.quantile(REACH_QUANTILE) if len(d) else d.new_zeros(()) for d in inside])
        return cls(method, mean, spread, *tensors, reach=reach)

    def __len__(self) -> int:
        return len(self.centres)

    def standardised(self, codes: Tensor) -> Tensor:
        return (codes - self.mean) / self.spread

    def assign(self, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, D) -> cluster (N,), distance to its centre (N,), and probability of each cluster (N, K)."""
        parts = [
            self._assign(part) for part in self.standardised(codes).split(max(1, MAX_VALUES // self.centres.numel()))
        ]
        return tuple(torch.cat(each) for each in zip(*parts, strict=True))

    def _assign(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gaps = points[:, None] - self.centres  # (N, K, D)
        logs = -0.5 * (gaps.square() / self.variances + self.variances.log()).sum(2) + self.shares.log()
        groups = logs.argmax(1)
        distances = gaps.square().sum(2).sqrt().gather(1, groups[:, None])[:, 0]
        return groups, distances, logs.softmax(1)

    def pack(self, facts: dict) -> ReportArtefact:
        names = ("mean", "spread", "centres", "variances", "shares", "reach")
        return ReportArtefact({name: getattr(self, name) for name in names}, facts | {"method": self.method})

    @classmethod
    def unpack(cls, fitted: ReportArtefact) -> Self:
        return cls(fitted.facts["method"], **fitted.tensors)


def _fitted(points: np.ndarray, count: int, method: Method, state: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres (K, D), variances (K, D) and shares (K,)."""
    from sklearn.cluster import KMeans
    from sklearn.mixture import GaussianMixture

    if method == "kmeans" or count == 1:
        centres = KMeans(count, n_init=10, random_state=state).fit(points).cluster_centers_
        return centres, np.ones_like(centres), np.full(count, 1 / count)
    mixture = GaussianMixture(count, covariance_type="diag", reg_covar=1e-4, random_state=state).fit(points)
    return mixture.means_, mixture.covariances_, mixture.weights_
