"""Shared by the operations that search for similar images: nearest neighbours with exact distances."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from models.evaluation.dataset_view import CHUNK, DatasetView, Selection, Split
from models.operations.core.base import DatasetParams, Result, Sheet
from models.types import InputError

EXTRA_CANDIDATES = 8  # torch.cdist is not exact, so a few more are compared exactly
Metric = Literal["euclidean", "cosine", "pixels"]


class NearestParams(DatasetParams):
    """Which images to search, and how to compare them."""

    split: Split = Field("all", description="Split to search.")
    neighbours: int = Field(8, ge=1, le=64, description="Number of nearest images per query.")
    metric: Metric = Field(
        "euclidean", description="euclidean or cosine distance of the codes, or pixel distance as a baseline."
    )
    images: int | None = Field(
        None, ge=1, le=100_000, description="Search only this many images, evenly spaced. Default: all."
    )


def nearest_images(
    view: DatasetView, selection: Selection, queries: Tensor, metric: Metric, count: int
) -> tuple[Tensor, Tensor]:
    """Distances and positions (Q, count) of the selected images nearest to `queries`, nearest first.

    Queries are codes (Q, D), or for `pixels` images (Q, C, H, W), whose distance is the root mean square difference.
    """
    best = torch.full((len(queries), 0), 0.0), torch.zeros(len(queries), 0, dtype=torch.int64)
    points = _as_points(queries, metric)
    for rows, positions in _reference(view, selection, metric):
        distances = torch.cat([best[0], torch.cdist(points, rows)], 1)
        candidates = torch.cat([best[1], positions.expand(len(queries), -1)], 1)
        closest = distances.topk(min(count + EXTRA_CANDIDATES, distances.shape[1]), largest=False)
        best = closest.values, candidates.gather(1, closest.indices)
    return _exact(view, selection, points, best[1], metric, count)


def _exact(
    view: DatasetView, selection: Selection, points: Tensor, candidates: Tensor, metric: Metric, count: int
) -> tuple[Tensor, Tensor]:
    """Exact distances of the candidates (Q, M); of equal distances the first in the dataset comes first."""
    candidates = candidates.sort(1).values
    if metric == "pixels":
        rows = _as_points(view.images(candidates.flatten()), metric)
    else:
        rows = _as_points(view.codes(selection)[torch.searchsorted(selection.positions, candidates.flatten())], metric)
    distances = (rows.unflatten(0, candidates.shape) - points[:, None]).double().square().sum(2).sqrt()
    if metric == "pixels":
        distances = distances / points.shape[1] ** 0.5
    order = distances.argsort(dim=1, stable=True)[:, :count]
    return distances.gather(1, order), candidates.gather(1, order)


def _as_points(rows: Tensor, metric: Metric) -> Tensor:
    return F.normalize(rows, dim=1) if metric == "cosine" else rows.flatten(1)


def _reference(view: DatasetView, selection: Selection, metric: Metric):
    """(rows, positions) of the selected images, part by part."""
    codes = None if metric == "pixels" else view.codes(selection)
    for start in range(0, len(selection), 16 * CHUNK):
        positions = selection.positions[start : start + 16 * CHUNK]
        view.tick()
        rows = view.images(positions) if codes is None else codes[start : start + 16 * CHUNK]
        yield _as_points(rows, metric), positions


def matches(view: DatasetView, distances: Tensor, positions: Tensor) -> Result:
    """The answer: for each query its matches, and one row of thumbnails."""
    places = view.describe(positions.flatten())
    entries = [
        place | {"distance": distance} for place, distance in zip(places, distances.flatten().tolist(), strict=True)
    ]
    width = positions.shape[1]
    items = [{"matches": entries[row * width : (row + 1) * width]} for row in range(len(positions))]
    sheet = Sheet(thumbnails(view.images(positions.flatten())), width)
    return Result(facts={"dataset": view.name, "items": items}, sheets={"thumbnails": sheet})


def thumbnails(images: Tensor, side: int = 64) -> Tensor:
    """(N, C, H, W) scaled down to at most `side` pixels, with the same aspect ratio."""
    height, width = images.shape[2:]
    scale = side / max(height, width)
    if scale >= 1:
        return images
    return F.interpolate(images, size=(max(1, round(height * scale)), max(1, round(width * scale))), mode="area")


def check_metric(metric: Metric, queries: Tensor) -> None:
    if metric == "pixels" and queries.ndim != 4:
        raise InputError("metric=pixels needs images as queries.", "metric", "Send an image, or use metric=euclidean.")
