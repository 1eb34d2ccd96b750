"""Two-dimensional maps (t-SNE, UMAP) and their quality: trustworthiness and kNN accuracy, with pixels as baseline."""

import importlib.util
import warnings

import numpy as np
import torch
from torch import Tensor

from models.nn.plane import Plane
from models.types import InputError

MAX_ROWS = 1000  # that quality is measured on
NEIGHBOURS = 10
KNN = 5
MIN_IMAGES = 5
TSNE_ITERATIONS = 500  # later iterations change little


def trustworthiness(original: Tensor, mapped: Tensor, neighbours: int = NEIGHBOURS) -> float | None:
    """Trustworthiness T(k) in [0, 1] of rows (N, 2) mapped from (N, D) (Venna & Kaski 2001).

    1: all neighbours on the map are neighbours in the original. None below 2k + 2 rows.
    """
    count = len(original)
    if count < 2 * neighbours + 2:
        return None
    inside, outside = _without_itself(mapped), _without_itself(original)
    ranks = torch.empty(count, count, dtype=torch.int64)
    ranks.scatter_(1, outside.argsort(dim=1, stable=True), torch.arange(1, count + 1).expand(count, -1))
    mapped_neighbours = inside.argsort(dim=1, stable=True)[:, :neighbours]
    excess = (ranks.gather(1, mapped_neighbours) - neighbours).clamp_min(0).sum()
    return 1 - float(excess) * 2 / (count * neighbours * (2 * count - 3 * neighbours - 1))


def leave_one_out(rows: Tensor, labels: Tensor, k: int = KNN) -> float | None:
    """Leave-one-out kNN accuracy of labels (N,) on rows (N, D); the nearest of the tied labels wins."""
    if len(rows) < 2:
        return None
    order = _without_itself(rows).argsort(dim=1, stable=True)[:, : min(k, len(rows) - 1)]
    votes = labels[order]
    counts = (votes[:, :, None] == votes[:, None, :]).sum(2)
    return float((votes.gather(1, counts.argmax(1, keepdim=True))[:, 0] == labels).double().mean())


def quality(pixels: Tensor, codes: Tensor, places: Tensor, labels: Tensor | None) -> dict:
    """Measures of the map `places`, of its codes, of a two-axis PCA of the pixels, and of the pixels."""
    rows = _measured_rows(len(pixels))
    pixels, labels = pixels[rows], None if labels is None else labels[rows]
    rows_by_name = {"map": places[rows], "codes": codes[rows], "pixel_pca": Plane.through(pixels).place(pixels)}
    measures = {"images": len(rows), "neighbours": NEIGHBOURS, "voters": KNN}
    measures["trustworthiness"] = {name: trustworthiness(pixels, each) for name, each in rows_by_name.items()}
    if labels is not None:
        rows_by_name["pixels"] = pixels
        accuracy = {name: leave_one_out(each, labels) for name, each in rows_by_name.items()}
        measures["knn_accuracy"] = accuracy | {"most_frequent": float(labels.bincount().max()) / len(labels)}
    return measures


def map_quality(pixels: Tensor, places: Tensor, labels: Tensor | None) -> dict:
    """Trustworthiness and kNN accuracy of one map."""
    rows = _measured_rows(len(pixels))
    measures = {"trustworthiness": trustworthiness(pixels[rows], places[rows])}
    return measures | ({} if labels is None else {"knn_accuracy": leave_one_out(places[rows], labels[rows])})


def check(method: str, count: int, limit: int) -> None:
    """Raises InputError if `method` cannot map `count` images, or is not installed."""
    if not MIN_IMAGES <= count <= limit:
        raise InputError(f"{method} needs {MIN_IMAGES} to {limit} images; there are {count}.", "images")
    if method == "umap" and importlib.util.find_spec("umap") is None:
        raise InputError(
            "UMAP is not installed.", "embedding", "Install anamorph[umap] for the workers, or use embedding=tsne."
        )


def embed(method: str, codes: Tensor) -> Tensor:
    """(N, D) -> (N, 2), the same for the same codes; zeros if all codes are equal."""
    spread = codes.std(0, correction=0)
    if not (spread > 0).any():
        return torch.zeros(len(codes), 2)
    rows = (codes / spread.max()).numpy().astype(np.float64)
    if method == "umap":
        with warnings.catch_warnings():  # about TensorFlow, which only its parametric variant would use
            warnings.simplefilter("ignore", ImportWarning)
            from umap import UMAP

        umap = UMAP(n_neighbors=min(15, len(rows) - 1), random_state=0, n_jobs=1)
        return torch.from_numpy(umap.fit_transform(rows)).float()
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(rows) - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, max_iter=TSNE_ITERATIONS, random_state=0, n_jobs=1)
    return torch.from_numpy(tsne.fit_transform(rows)).float()


def _measured_rows(count: int) -> Tensor:
    return torch.linspace(0, count - 1, min(count, MAX_ROWS), dtype=torch.float64).long()


def _without_itself(rows: Tensor) -> Tensor:
    """(N, D) -> (N, N) Euclidean distances, infinite on the diagonal."""
    return torch.cdist(rows, rows).fill_diagonal_(torch.inf)
