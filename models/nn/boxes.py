"""Boxes: detections from a detector's maps, intersection over union, non-maximum suppression, average precision.

A box is left, top, right, bottom in pixels, right and bottom exclusive. Detections are tables (N, M, 6) of box, class
and probability, in order of decreasing probability, padded with rows of class -1.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

LIMIT = 64
"""Maximum number of detections per image."""
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
    """Logits (N, K, h, w), set to -inf except at local maxima of their class (3x3 neighbourhood)."""
    return logits.masked_fill(F.max_pool2d(logits, 3, 1, 1) > logits, -torch.inf)


def candidates(maps: Tensor, limit: int = LIMIT, max_iou: float = OVERLAP) -> tuple[Tensor, Tensor, Tensor]:
    """Maps (N, K + 4, h, w) -> boxes (N, M, 4), classes (N, M), logits (N, M) of the highest peaks, descending.

    Non-maximum suppression: of two boxes of one class whose IoU exceeds `max_iou` the lower logit is set to -inf.
    """
    logits, boxes = maps[:, :-4], maps[:, -4:]
    cells = logits.shape[2] * logits.shape[3]
    order = peaks(logits).flatten(1).sort(dim=1, descending=True, stable=True)
    values, places = order.values[:, :limit], order.indices[:, :limit]
    classes, cell = places // cells, places % cells
    boxes = boxes.flatten(2).gather(2, cell[:, None].expand(-1, 4, -1)).mT
    return boxes, classes, values.masked_fill(~_not_suppressed(boxes, classes, max_iou), -torch.inf)


def detections(maps: Tensor, score: float = SCORE, limit: int = LIMIT, max_iou: float = OVERLAP) -> Tensor:
    """Maps (N, K + 4, h, w) -> (N, limit, 6): the candidates with a probability of at least `score`."""
    boxes, classes, logits = candidates(maps, limit, max_iou)
    probabilities = logits.sigmoid()
    accepted = probabilities >= score
    table = torch.cat([boxes, classes[..., None].to(boxes), probabilities[..., None]], 2)
    table = torch.where(accepted[..., None], table, no_detection(table))
    front = (~accepted).to(torch.int8).argsort(dim=1, stable=True)
    table = table.gather(1, front[..., None].expand(-1, -1, 6))
    return torch.cat([table, no_detection(table.new_zeros(len(table), limit - table.shape[1], 6))], 1)


def no_detection(table: Tensor) -> Tensor:
    """Padding rows (class -1) in the shape of `table`."""
    rows = torch.zeros_like(table)
    rows[..., 4] = NONE
    return rows


def _not_suppressed(boxes: Tensor, classes: Tensor, max_iou: float) -> Tensor:
    """(N, M): the boxes that no earlier accepted box of the same class overlaps by more than `max_iou`."""
    covers = (overlap(boxes, boxes) > max_iou) & (classes[:, :, None] == classes[:, None, :])
    covers = covers.triu(1)
    accepted = torch.ones_like(classes, dtype=torch.bool)
    for row in range(boxes.shape[1] - 1):
        accepted = accepted & ~(covers[:, row] & accepted[:, row, None])
    return accepted


def without_padding(table: Tensor) -> Tensor:
    """The rows of one image's detections (M, 6) or boxes (M, 5) that are no padding."""
    return table[table[:, 4] >= 0]


def matches(predictions: Tensor, truth: Tensor, thresholds: Iterable[float]) -> Tensor:
    """(N, thresholds): whether each detection (N, 6), in descending order, is a true positive for the objects (M, 5).

    Each takes the unmatched object of its class with the highest IoU, if at least the threshold (the COCO rule).
    """
    least = torch.tensor([*thresholds])
    hits = torch.zeros(len(predictions), len(least), dtype=torch.bool)
    if not len(truth):
        return hits
    shared = overlap(predictions[:, :4], truth[:, :4]) * (predictions[:, None, 4] == truth[None, :, 4])
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
        """Of every detection: class, probability, and 1 or 0 (true positive or not) for each threshold."""
        self.objects = [0] * classes

    def add(self, predictions: Tensor, truth: Tensor) -> None:
        """Add one image: detections (M, 6) and true boxes (M', 5), padded or not."""
        predictions, truth = without_padding(predictions).float().cpu(), without_padding(truth).float().cpu()
        for index in truth[:, 4].long().tolist():
            self.objects[index] += 1
        self.rows += torch.cat([predictions[:, 4:6], matches(predictions, truth, self.thresholds).float()], 1).tolist()

    def by_class(self) -> Tensor:
        """(K, thresholds) average precision; NaN for a class without objects."""
        table = torch.tensor(self.rows, dtype=torch.float64).view(-1, 2 + len(self.thresholds))
        precisions = torch.full((self.classes, len(self.thresholds)), torch.nan, dtype=torch.float64)
        for index, count in enumerate(self.objects):
            rows = table[table[:, 0] == index]
            rows = rows[rows[:, 1].argsort(descending=True, stable=True)]
            if count:
                precisions[index] = torch.stack([average_precision(hits, count) for hits in rows[:, 2:].T])
        return precisions

    def summary(self) -> dict[str, float]:
        """`map50` and `map` (the mean over the thresholds .5 to .95); 0 if there are no objects."""
        table = self.by_class()
        return {"map50": float(table[:, 0].nanmean().nan_to_num()), "map": float(table.nanmean().nan_to_num())}


def average_precision(hits: Tensor, objects: int) -> Tensor:
    """Mean over 101 recall levels of the best precision at that recall or more; `hits` (N,) in descending order."""
    true_positives = hits.double().cumsum(0)
    precision = true_positives / torch.arange(1, len(hits) + 1, dtype=torch.float64)
    recall = true_positives / objects
    best = precision.flip(0).cummax(0).values.flip(0) if len(hits) else precision
    place = torch.searchsorted(recall.contiguous(), torch.linspace(0, 1, 101, dtype=torch.float64) - 1e-12)
    return torch.cat([best, best.new_zeros(1)])[place.clamp_max(len(hits))].mean()


def draw_boxes(images: Tensor, tables: Tensor, paint: Tensor) -> Tensor:
    """Images (N, C, H, W) with the outlines of boxes (N, M, 5 or more) in the colour of their class -> (N, 3, H, W).

    `paint` (K, 3) are the colours. The first box is drawn last, over the others.
    """
    images = images.expand(-1, 3, -1, -1).clone() if images.shape[1] == 1 else images.clone()
    height, width = images.shape[2:]
    for image, table in zip(images, tables.cpu(), strict=True):
        for left, top, right, bottom, kind, *_ in without_padding(table).flip(0).tolist():
            rows = sorted((min(max(round(edge), 0), height - 1)) for edge in (top, bottom - 1))
            columns = sorted((min(max(round(edge), 0), width - 1)) for edge in (left, right - 1))
            colour = paint[int(kind)][:, None].to(image)
            for row in rows:
                image[:, row, columns[0] : columns[1] + 1] = colour
            for column in columns:
                image[:, rows[0] : rows[1] + 1, column] = colour
    return images
