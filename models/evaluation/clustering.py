"""Clusters of codes: spectral, k-means, or a Gaussian mixture; fitted once, then new codes are assigned to them."""

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from models.evaluation.metrics import CHUNK, principal_axes
from models.types import ReportArtefact

Method = Literal["spectral", "kmeans", "gmm"]
REACH_QUANTILE = 0.99
MAX_VALUES = 4_000_000  # in one (rows, clusters, axes) block
MAX_AXES = 64
INACTIVE = 0.01  # fraction of the mean variance of the axes below which an axis is dropped
NEIGHBOURS = 10  # of a code in the graph, and those that vote for the cluster of a new code
MAX_GRAPH = 5000  # codes in the graph; others are assigned by vote
SHRINKAGE = 0.1  # of covariances, as a fraction of the mean variance
STARTS = 5  # of a mixture of up to ten clusters


@dataclass(frozen=True)
class Clustering:
    """Points (N, A) are codes (N, D) minus `mean`, on `axes` (A, D): principal axes, not scaled by their spread.

    Scaling would give the noise of inactive units the weight of active ones. `centres` are (K, A). `reach` (K,) is the
    99 % quantile of the distances of a cluster's own codes from its centre. gmm: `shares` (K,), and `factors` (K, A, A)
    with precision = factor factor^T, or (K, A) for a diagonal one. spectral: `reference` points (M, A) and their
    clusters `groups` (M,); new codes take the vote of the nearest.
    """

    method: str
    mean: Tensor
    axes: Tensor
    centres: Tensor
    reach: Tensor
    shares: Tensor | None = None
    factors: Tensor | None = None
    reference: Tensor | None = None
    groups: Tensor | None = None

    @classmethod
    def fit(cls, codes: Tensor, count: int, method: Method, seed: int) -> Self:
        """Fit `count` clusters to codes (N, D), N > count, reproducibly for a seed; fewer if codes are equal."""
        mean, axes = codes.mean(0), active_axes(codes)
        points = ((codes - mean) @ axes.T).numpy().astype(np.float64)
        count = min(count, len(np.unique(points, axis=0)))
        fit = {"spectral": _spectral, "kmeans": _kmeans, "gmm": _mixture}[method if count > 1 else "kmeans"]
        fitted = {
            name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in fit(points, count, seed).items()
        }
        floats = {name: tensor if name == "groups" else tensor.float() for name, tensor in fitted.items()}
        return cls(method, mean, axes, reach=torch.zeros(count), **floats)._with_reach(codes)

    @classmethod
    def from_groups(cls, codes: Tensor, groups: Tensor, method: str) -> Self:
        """Clusters known for codes (N, D) as `groups` (N,), numbered anew without gaps: new codes are voted on."""
        groups = groups.unique(return_inverse=True)[1]
        mean, axes = codes.mean(0), active_axes(codes)
        points = (codes - mean) @ axes.T
        centres = torch.stack([points[groups == group].mean(0) for group in range(int(groups.max()) + 1)])
        reach = torch.zeros(len(centres))
        return cls(method, mean, axes, centres, reach, reference=points, groups=groups)._with_reach(codes)

    def __len__(self) -> int:
        return len(self.centres)

    def points(self, codes: Tensor) -> Tensor:
        """(N, D) -> (N, A)."""
        return (codes - self.mean) @ self.axes.T

    def assign(self, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, D) -> cluster (N,), distance to its centre (N,), and probability of each cluster (N, K)."""
        size = max(1, min(CHUNK, MAX_VALUES // self.centres.numel()))
        parts = [self._assign(part) for part in self.points(codes).split(size)]
        return tuple(torch.cat(each) for each in zip(*parts, strict=True))

    def _assign(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gaps = points[:, None] - self.centres  # (N, K, A)
        distances = gaps.square().sum(2)
        if self.reference is not None:
            probabilities = self._votes(points)
        elif self.factors is None:
            probabilities = (-0.5 * distances).softmax(1)
        elif self.factors.ndim == 2:
            white = gaps * self.factors
            probabilities = self._posterior(white, self.factors)
        else:
            white = torch.einsum("nka,kab->nkb", gaps, self.factors)
            probabilities = self._posterior(white, self.factors.diagonal(dim1=1, dim2=2))
        groups = distances.argmin(1) if self.method == "kmeans" else probabilities.argmax(1)
        return groups, distances.gather(1, groups[:, None])[:, 0].sqrt(), probabilities

    def _posterior(self, white: Tensor, diagonal: Tensor) -> Tensor:
        """p(k | x) from whitened gaps (N, K, A) and the diagonals (K, A) of triangular factors of the precisions."""
        return (-0.5 * white.square().sum(2) + diagonal.log().sum(1) + self.shares.log()).softmax(1)

    def _votes(self, points: Tensor) -> Tensor:
        """(N, K): shares of the nearest reference points, weighted by 1 / squared distance: equal codes decide."""
        # exact distances: those of the matrix product are not zero for equal codes
        gaps = torch.cdist(points, self.reference, compute_mode="donot_use_mm_for_euclid_dist")
        near = gaps.topk(min(NEIGHBOURS, len(self.reference)), largest=False)
        weights = 1 / near.values.square().clamp_min(1e-12)
        votes = points.new_zeros(len(points), len(self)).scatter_add(1, self.groups[near.indices], weights)
        return votes / votes.sum(1, keepdim=True)

    def _with_reach(self, codes: Tensor) -> Self:
        groups, distances, _ = self.assign(codes)
        inside = [distances[groups == group] for group in range(len(self))]
        reach = torch.stack([d.quantile(REACH_QUANTILE) if len(d) else d.new_zeros(()) for d in inside])
        return type(self)(**vars(self) | {"reach": reach})

    def pack(self, facts: dict) -> ReportArtefact:
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return ReportArtefact(tensors, facts | {"method": self.method})

    @classmethod
    def unpack(cls, fitted: ReportArtefact) -> Self:
        tensors = dict(fitted.tensors)
        if "spread" in tensors:  # releases up to 0.1 divided codes by their spread and fitted diagonal covariances
            tensors["axes"] = (1 / tensors.pop("spread")).diag()
            tensors["factors"] = tensors.pop("variances").rsqrt()
        return cls(fitted.facts["method"], **tensors)


def active_axes(codes: Tensor) -> Tensor:
    """(A, D): the principal axes of codes (N, D), at most 64, without those of almost no variance; at least one."""
    centred = codes - codes.mean(0)
    axes = principal_axes(centred, min(MAX_AXES, *codes.shape))
    variances = (centred @ axes.T).square().mean(0)
    return axes[: max(1, int((variances > INACTIVE * centred.square().mean()).sum()))]


def _kmeans(points: np.ndarray, count: int, seed: int) -> dict[str, np.ndarray]:
    from sklearn.cluster import KMeans

    return {"centres": KMeans(count, n_init=10, random_state=seed % 2**32).fit(points).cluster_centers_}


def _mixture(points: np.ndarray, count: int, seed: int) -> dict[str, np.ndarray]:
    from sklearn.mixture import GaussianMixture

    settings = {"covariance_type": "full", "n_init": max(1, min(STARTS, 10 * STARTS // count))}
    shrinkage = max(SHRINKAGE * points.var(0).mean(), 1e-9)
    mixture = GaussianMixture(count, reg_covar=shrinkage, random_state=seed % 2**32, **settings).fit(points)
    return {"centres": mixture.means_, "factors": mixture.precisions_cholesky_, "shares": mixture.weights_}


def _spectral(points: np.ndarray, count: int, seed: int) -> dict[str, np.ndarray]:
    """Normalised spectral clustering of the graph of nearest neighbours (Ng, Jordan & Weiss 2001)."""
    from scipy.sparse import diags
    from scipy.sparse.linalg import eigsh
    from sklearn.cluster import KMeans
    from sklearn.neighbors import kneighbors_graph

    rows = np.linspace(0, len(points) - 1, min(len(points), MAX_GRAPH)).astype(np.int64)
    reference = points[rows]
    graph = kneighbors_graph(reference, min(NEIGHBOURS, len(reference) - 1))
    graph = (graph + graph.T) / 2
    scale = diags(1 / np.sqrt(np.asarray(graph.sum(1))[:, 0]))
    graph = scale @ graph @ scale  # D^-1/2 W D^-1/2
    if len(reference) > max(500, 10 * count):
        start = np.random.default_rng(seed).standard_normal(len(reference))
        vectors = eigsh(graph, count, which="LA", v0=start)[1]
    else:
        vectors = np.linalg.eigh(graph.toarray())[1][:, -count:]
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    groups = KMeans(count, n_init=10, random_state=seed % 2**32).fit_predict(vectors)
    groups = np.unique(groups, return_inverse=True)[1].astype(np.int64)
    centres = np.stack([reference[groups == group].mean(0) for group in range(groups.max() + 1)])
    return {"centres": centres, "reference": reference, "groups": groups}
