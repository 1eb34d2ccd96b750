"""What the operations that look for similar images share: distances, exact for those that are told."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from models.evaluation.dataset_view import CHUNK, DatasetView, Selection, Split
from models.operations.core.base import DatasetParams, Result, Sheet
from models.types import InputError

SPARE = 8  # more candidates than asked for: fast distances are not exact, and their order may be off
Metric = Literal["euclidean", "cosine", "pixels"]


class NearestParams(DatasetParams):
    """Which images, and how they are compared."""

    split: Split = Field("all", description="Images of which side.")
    neighbours: int = Field(8, ge=1, le=64, description="How many images for each one asked about.")
    metric: Metric = Field(
        "euclidean", description="Distance of codes, angle between codes, or distance of pixels as the plain rival."
    )
    images: int | None = Field(
        None, ge=1, le=100_000, description="Look at so many images, evenly spaced; empty: at all."
    )


def nearest(
    view: DatasetView, selection: Selection, queries: Tensor, metric: Metric, count: int
) -> tuple[Tensor, Tensor]:
    """Distances and positions (q, count) of the picked images nearest to `queries`, nearest first.

    Queries are codes (q, d), or images (q, c, h, w) for `pixels`, whose distance is the root of the mean square.
    """
    best = torch.full((len(queries), 0), 0.0), torch.zeros(len(queries), 0, dtype=torch.int64)
    wanted = _form(queries, metric)
    for rows, positions in _reference(view, selection, metric):
        distances = torch.cat([best[0], torch.cdist(wanted, rows)], 1)
        chosen = torch.cat([best[1], positions.expand(len(queries), -1)], 1)
        kept = distances.topk(min(count + SPARE, distances.shape[1]), largest=False)
        best = kept.values, chosen.gather(1, kept.indices)
    return _settled(view, selection, wanted, best[1], metric, count)


def _settled(
    view: DatasetView, selection: Selection, wanted: Tensor, chosen: Tensor, metric: Metric, count: int
) -> tuple[Tensor, Tensor]:
    """The distances of the candidates without rounding by cancellation; of equal ones the first in the dataset."""
    chosen = chosen.sort(1).values
    if metric == "pixels":
        rows = _form(view.images(chosen.flatten()), metric)
    else:
        rows = _form(view.codes(selection)[torch.searchsorted(selection.positions, chosen.flatten())], metric)
    distances = (rows.unflatten(0, chosen.shape) - wanted[:, None]).double().square().sum(2).sqrt()
    if metric == "pixels":
        distances = distances / wanted.shape[1] ** 0.5
    order = distances.argsort(dim=1, stable=True)[:, :count]
    return distances.gather(1, order), chosen.gather(1, order)


def _form(rows: Tensor, metric: Metric) -> Tensor:
    return F.normalize(rows, dim=1) if metric == "cosine" else rows.flatten(1)


def _reference(view: DatasetView, selection: Selection, metric: Metric):
    """(rows, positions) of the picked images, part by part."""
    codes = None if metric == "pixels" else view.codes(selection)
    for start in range(0, len(selection), 16 * CHUNK):
        positions = selection.positions[start : start + 16 * CHUNK]
        view.tick()
        rows = view.images(positions) if codes is None else codes[start : start + 16 * CHUNK]
        yield _form(rows, metric), positions


def matched(view: DatasetView, distances: Tensor, positions: Tensor) -> Result:
    """For each query its matches, and one row of thumbnails."""
    places = view.describe(positions.flatten())
    found = [
        place | {"distance": distance} for place, distance in zip(places, distances.flatten().tolist(), strict=True)
    ]
    width = positions.shape[1]
    items = [{"matches": found[row * width : (row + 1) * width]} for row in range(len(positions))]
    sheet = Sheet(thumbnails(view.images(positions.flatten())), width)
    return Result(facts={"dataset": view.name, "items": items}, sheets={"thumbnails": sheet})


def thumbnails(images: Tensor, side: int = 64) -> Tensor:
    """(n, c, h, w) no larger than `side`, in the same proportions."""
    height, width = images.shape[2:]
    scale = side / max(height, width)
    if scale >= 1:
        return images
    return F.interpolate(images, size=(max(1, round(height * scale)), max(1, round(width * scale))), mode="area")


def check_metric(metric: Metric, queries: Tensor) -> None:
    if metric == "pixels" and queries.ndim != 4:
        raise InputError("pixels can only be compared with an image", "metric", "send an image, or compare codes")
