"""How true a map is to what it shows: trustworthiness and nearest-neighbour accuracy, with pixels as the plain rival.

Maps to look at only, t-SNE and UMAP, are made here too.
"""

import importlib.util
import warnings

import numpy as np
import torch
from torch import Tensor

from models.nn.plane import Plane
from models.types import InputError

JUDGED = 1000
TRUSTED = 10
VOTERS = 5
FEWEST = 5
ROUNDS = 500  # of t-SNE: somebody waits, and what follows changes little


def trustworthiness(original: Tensor, mapped: Tensor, neighbours: int = TRUSTED) -> float | None:
    """In [0, 1]: 1 where neighbours on the map are neighbours in truth (Venna & Kaski 2001). None below 2k + 2 rows."""
    count = len(original)
    if count < 2 * neighbours + 2:
        return None
    inside, outside = _without_itself(mapped), _without_itself(original)
    ranks = torch.empty(count, count, dtype=torch.int64)
    ranks.scatter_(1, outside.argsort(dim=1, stable=True), torch.arange(1, count + 1).expand(count, -1))
    told = inside.argsort(dim=1, stable=True)[:, :neighbours]
    excess = (ranks.gather(1, told) - neighbours).clamp_min(0).sum()
    return 1 - float(excess) * 2 / (count * neighbours * (2 * count - 3 * neighbours - 1))


def leave_one_out(rows: Tensor, labels: Tensor, voters: int = VOTERS) -> float | None:
    """Share of rows whose label most of the nearest others have; the nearest of them breaks a tie."""
    if len(rows) < 2:
        return None
    order = _without_itself(rows).argsort(dim=1, stable=True)[:, : min(voters, len(rows) - 1)]
    votes = labels[order]
    counts = (votes[:, :, None] == votes[:, None, :]).sum(2)
    return float((votes.gather(1, counts.argmax(1, keepdim=True))[:, 0] == labels).double().mean())


def quality(pixels: Tensor, codes: Tensor, places: Tensor, labels: Tensor | None) -> dict:
    """Of the map, of the codes it was made from, of PCA on pixels with two axes, of the pixels themselves."""
    rows = _judged(len(pixels))
    pixels, labels = pixels[rows], None if labels is None else labels[rows]
    rivals = {"map": places[rows], "codes": codes[rows], "pixel_pca": Plane.through(pixels).place(pixels)}
    found = {"images": len(rows), "neighbours": TRUSTED, "voters": VOTERS}
    found["trustworthiness"] = {name: trustworthiness(pixels, rival) for name, rival in rivals.items()}
    if labels is not None:
        accuracy = {name: leave_one_out(rival, labels) for name, rival in (rivals | {"pixels": pixels}).items()}
        found["knn_accuracy"] = accuracy | {"most_frequent": float(labels.bincount().max()) / len(labels)}
    return found


def of_map(pixels: Tensor, places: Tensor, labels: Tensor | None) -> dict:
    """The same numbers for one map alone."""
    rows = _judged(len(pixels))
    found = {"trustworthiness": trustworthiness(pixels[rows], places[rows])}
    return found | ({} if labels is None else {"knn_accuracy": leave_one_out(places[rows], labels[rows])})


def check(method: str, count: int, most: int) -> None:
    """Raises InputError when there is no such map of so many images."""
    if not FEWEST <= count <= most:
        raise InputError(f"{method} places {FEWEST} to {most} images; here are {count}", "images")
    if method == "umap" and importlib.util.find_spec("umap") is None:
        raise InputError(
            "UMAP is not installed", "embedding", "install anamorph[umap] for the workers, or ask for tsne"
        )


def embed(method: str, codes: Tensor) -> Tensor:
    """(n, d) -> (n, 2), the same for the same codes. Codes that are all alike stay where they are."""
    spread = codes.std(0, correction=0)
    if not (spread > 0).any():
        return torch.zeros(len(codes), 2)
    rows = (codes / spread.max()).numpy().astype(np.float64)
    if method == "umap":
        with warnings.catch_warnings():  # about TensorFlow, which only its parametric variant would use
            warnings.simplefilter("ignore", ImportWarning)
            from umap import UMAP

        found = UMAP(n_neighbors=min(15, len(rows) - 1), random_state=0, n_jobs=1).fit_transform(rows)
        return torch.from_numpy(found).float()
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(rows) - 1) / 3)
    found = TSNE(2, perplexity=perplexity, max_iter=ROUNDS, random_state=0, n_jobs=1).fit_transform(rows)
    return torch.from_numpy(found).float()


def _judged(count: int) -> Tensor:
    return torch.linspace(0, count - 1, min(count, JUDGED), dtype=torch.float64).long()


def _without_itself(rows: Tensor) -> Tensor:
    """(n, n) distances, infinite from each row to itself."""
    return torch.cdist(rows, rows).fill_diagonal_(torch.inf)
