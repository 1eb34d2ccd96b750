"""Boxes: from the maps of a detector to detections, their overlap, and average precision.

A box is left, top, right, bottom in pixels, right and bottom exclusive. Detections are rows (N, M, 6) of a box, its
class and its probability, the surest first; rows of class -1 fill the table up.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

LIMIT = 64
"""Most detections of one image."""
NONE = -1
SCORE, OVERLAP = 0.3, 0.5
THRESHOLDS = tuple(0.5 + 0.05 * step for step in range(10))


def overlap(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of boxes (..., M, 4) and (..., P, 4): (..., M, P), 0 for boxes without area."""
    one, other = one[..., :, None, :], other[..., None, :, :]
    low = torch.maximum(one[..., :2], other[..., :2])
    high = torch.minimum(one[..., 2:4], other[..., 2:4])
    both = (high - low).clamp_min(0).prod(-1)
    sizes = [(boxes[..., 2:4] - boxes[..., :2]).clamp_min(0).prod(-1) for boxes in (one, other)]
    return both / (sizes[0] + sizes[1] - both).clamp_min(1e-9)


def peaks(logits: Tensor) -> Tensor:
    """Logits (N, K, h, w), at minus infinity but where no neighbour of the same class is higher."""
    return logits.masked_fill(F.max_pool2d(logits, 3, 1, 1) > logits, -torch.inf)


def candidates(maps: Tensor, most: int = LIMIT, same: float = OVERLAP) -> tuple[Tensor, Tensor, Tensor]:
    """Maps (N, K + 4, h, w) -> boxes (N, M, 4), classes (N, M) and logits (N, M) of the surest peaks, surest first.

    Of two of one class that overlap by more than `same` only the surer has its logit, the other minus infinity
    (non-maximum suppression). Which of them count is a matter of the logit alone.
    """
    logits, boxes = maps[:, :-4], maps[:, -4:]
    cells = logits.shape[2] * logits.shape[3]
    order = peaks(logits).flatten(1).sort(dim=1, descending=True, stable=True)
    values, places = order.values[:, :most], order.indices[:, :most]
    kinds, cell = places // cells, places % cells
    found = boxes.flatten(2).gather(2, cell[:, None].expand(-1, 4, -1)).mT
    return found, kinds, values.masked_fill(~_distinct(found, kinds, same), -torch.inf)


def detections(maps: Tensor, score: float = SCORE, most: int = LIMIT, same: float = OVERLAP) -> Tensor:
    """Maps (N, K + 4, h, w) -> (N, most, 6): the candidates of probability `score` or more. Rows do not mix."""
    boxes, kinds, logits = candidates(maps, most, same)
    chances = logits.sigmoid()
    kept = chances >= score
    table = torch.cat([boxes, kinds[..., None].to(boxes), chances[..., None]], 2)
    table = torch.where(kept[..., None], table, blank(table))
    front = (~kept).to(torch.int8).argsort(dim=1, stable=True)
    table = table.gather(1, front[..., None].expand(-1, -1, 6))
    return torch.cat([table, blank(table.new_zeros(len(table), most - table.shape[1], 6))], 1)


def blank(table: Tensor) -> Tensor:
    """Rows of no detection, of the same shape."""
    rows = torch.zeros_like(table)
    rows[..., 4] = NONE
    return rows


def _distinct(boxes: Tensor, kinds: Tensor, same: float) -> Tensor:
    """(N, M): the boxes that none before them, of the same class and kept itself, covers."""
    covers = (overlap(boxes, boxes) > same) & (kinds[:, :, None] == kinds[:, None, :])
    covers = covers.triu(1)
    kept = torch.ones_like(kinds, dtype=torch.bool)
    for row in range(boxes.shape[1] - 1):
        kept = kept & ~(covers[:, row] & kept[:, row, None])
    return kept


def rows_of(table: Tensor) -> Tensor:
    """The detections of one image (M, 6) without those that fill it up, or boxes (M, 5) without theirs."""
    return table[table[:, 4] >= 0]


def matched(found: Tensor, truth: Tensor, thresholds: Iterable[float]) -> Tensor:
    """(n, thresholds): whether each detection (n, 6), the surest first, is the first on an object of its class (m, 5).

    Each takes the free object of its class that it overlaps most, if by the threshold or more (the COCO rule).
    """
    least = torch.tensor([*thresholds])
    hits = torch.zeros(len(found), len(least), dtype=torch.bool)
    if not len(truth):
        return hits
    shared = overlap(found[:, :4], truth[:, :4]) * (found[:, None, 4] == truth[None, :, 4])
    free = torch.ones(len(least), len(truth), dtype=torch.bool)
    for row in (shared.amax(1) >= least.min()).nonzero()[:, 0].tolist():
        best, place = torch.where(free, shared[row], -1.0).max(1)
        hits[row] = best >= least
        free[hits[row], place[hits[row]]] = False
    return hits


class Precision:
    """Mean average precision over images that come one by one (COCO: 101 points of recall, mean over classes)."""

    def __init__(self, classes: int, thresholds: Iterable[float] = THRESHOLDS):
        self.classes, self.thresholds = classes, tuple(thresholds)
        self.rows: list[list[float]] = []
        """Class, probability, and a hit or not for each threshold, of every detection."""
        self.objects = [0] * classes

    def add(self, found: Tensor, truth: Tensor) -> None:
        """Detections (M, 6) and true boxes (m, 5) of one image, filled up or not."""
        found, truth = rows_of(found).float().cpu(), rows_of(truth).float().cpu()
        for kind in truth[:, 4].long().tolist():
            self.objects[kind] += 1
        self.rows += torch.cat([found[:, 4:6], matched(found, truth, self.thresholds).float()], 1).tolist()

    def by_class(self) -> Tensor:
        """(K, thresholds) average precision; NaN for a class without objects."""
        table = torch.tensor(self.rows, dtype=torch.float64).view(-1, 2 + len(self.thresholds))
        found = torch.full((self.classes, len(self.thresholds)), torch.nan, dtype=torch.float64)
        for kind, count in enumerate(self.objects):
            mine = table[table[:, 0] == kind]
            mine = mine[mine[:, 1].argsort(descending=True, stable=True)]
            if count:
                found[kind] = torch.stack([average_precision(hits, count) for hits in mine[:, 2:].T])
        return found

    def summary(self) -> dict[str, float]:
        """`map50` and `map` (the mean over the thresholds .5 to .95); 0 where there are no objects at all."""
        table = self.by_class()
        return {"map50": float(table[:, 0].nanmean().nan_to_num()), "map": float(table.nanmean().nan_to_num())}


def average_precision(hits: Tensor, objects: int) -> Tensor:
    """Mean over 101 recalls of the best precision at that recall or more; `hits` (n,), the surest first."""
    right = hits.double().cumsum(0)
    precision = right / torch.arange(1, len(hits) + 1, dtype=torch.float64)
    recall = right / objects
    best = precision.flip(0).cummax(0).values.flip(0) if len(hits) else precision
    place = torch.searchsorted(recall.contiguous(), torch.linspace(0, 1, 101, dtype=torch.float64) - 1e-12)
    return torch.cat([best, best.new_zeros(1)])[place.clamp_max(len(hits))].mean()


def draw(images: Tensor, tables: Tensor, paint: Tensor) -> Tensor:
    """Images (N, C, H, W) with the outlines of boxes (N, M, 5 or more) in the colour of their class, (N, 3, H, W).

    `paint` (K, 3) are the colours. The surest box is drawn last, over the others.
    """
    images = images.expand(-1, 3, -1, -1).clone() if images.shape[1] == 1 else images.clone()
    height, width = images.shape[2:]
    for image, table in zip(images, tables.cpu(), strict=True):
        for left, top, right, bottom, kind, *_ in rows_of(table).flip(0).tolist():
            rows = sorted((min(max(round(edge), 0), height - 1)) for edge in (top, bottom - 1))
            columns = sorted((min(max(round(edge), 0), width - 1)) for edge in (left, right - 1))
            colour = paint[int(kind)][:, None].to(image)
            for row in rows:
                image[:, row, columns[0] : columns[1] + 1] = colour
            for column in columns:
                image[:, rows[0] : rows[1] + 1, column] = colour
    return images
