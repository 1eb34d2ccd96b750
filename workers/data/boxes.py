"""Boxes of objects: read from boxes.csv or an npz array, checked, scaled with their image, stored as columns."""

import math
from collections import defaultdict
from typing import NamedTuple

import numpy as np

from app.core.errors import InvalidDataset, InvalidImage
from app.core.names import natural
from workers.data.attributes import read_number, read_table
from workers.data.layouts import SPLITS
from workers.data.npz import Array
from workers.data.rows import MAX_CLASSES, Report, Size, printable

COLUMNS = ("file", "label", "left", "top", "right", "bottom")
MAX_BOXES = 64
"""Per image."""
MIN_VISIBLE = 0.3
"""A box is dropped when cropping leaves less than this fraction of its area."""


class Box(NamedTuple):
    """Edges in pixels of the image, right and bottom exclusive; `label` is a class name or a class index."""

    left: float
    top: float
    right: float
    bottom: float
    label: str | int


class Objects(NamedTuple):
    """The lines of boxes.csv about one file. `bad`: a line is unusable, so the image is refused."""

    boxes: list[tuple[str, Box]]
    """(line, box), such as ("boxes.csv line 3", box)."""
    split: str | None
    bad: bool = False


def read_boxes(data: bytes, report: Report) -> dict[str, Objects]:
    """Objects by file name; a line with nothing but a file name stands for an image without objects."""
    lines, columns = read_table("boxes.csv", data)
    if missing := [name for name in COLUMNS if name not in columns.values()]:
        raise InvalidDataset(
            f"Missing in boxes.csv: {', '.join(missing)}.",
            field="boxes.csv",
            remedy=f"Write a line per object with {', '.join(COLUMNS)}: edges in pixels, right and bottom exclusive.",
        )
    objects: dict[str, Objects] = defaultdict(lambda: Objects([], None))
    for number, line in enumerate(lines, start=2):
        cells = {column: (line[name] or "").strip() for name, column in columns.items()}
        where, file = f"boxes.csv line {number}", cells["file"].replace("\\", "/").removeprefix("./")
        old = objects[file]
        split = SPLITS.get(cells.get("split", "").lower()) or old.split
        try:
            box = _read(cells)
        except InvalidImage as error:
            report.refuse(where, error.detail)
            objects[file] = Objects(old.boxes, split, bad=True)
        else:
            objects[file] = Objects([*old.boxes, *([(where, box)] if box else [])], split, old.bad)
    return dict(objects)


def _read(cells: dict[str, str]) -> Box | None:
    if not cells["file"]:
        raise InvalidImage("The column file is empty.")
    if not any(cells[name] for name in COLUMNS[1:]):
        return None
    if not cells["label"]:
        raise InvalidImage("The column label is empty.")
    return Box(*(read_number(name, cells[name]) for name in COLUMNS[2:]), printable(cells["label"]))


def check(box: Box, height: int, width: int) -> None:
    """Raises InvalidImage unless the box has an area and lies inside the image."""
    if not all(math.isfinite(edge) for edge in box[:4]):
        raise InvalidImage(f"The edges of the box {_edges(box)} must be finite numbers.")
    if not (box.left < box.right and box.top < box.bottom):
        raise InvalidImage(f"The box {_edges(box)} has no area: right must exceed left and bottom must exceed top.")
    if not (box.left >= 0 and box.top >= 0 and box.right <= width and box.bottom <= height):
        raise InvalidImage(
            f"The box {_edges(box)} is not inside its image of {width} x {height} pixels (width x height)."
        )


def _edges(box: Box) -> str:
    return f"({box.left:g}, {box.top:g}, {box.right:g}, {box.bottom:g})"


def fit_boxes(boxes: list[Box], old: Size, new: Size) -> list[Box]:
    """The boxes after `codecs.fit` scaled their image from `old` to `new`, without those mostly cropped away."""
    scale = min(old.height / new.height, old.width / new.width)
    top, left = (old.height - new.height * scale) / 2, (old.width - new.width * scale) / 2
    visible = []
    for box in boxes:
        edges = [(edge - start) / scale for edge, start in zip(box[:4], (left, top) * 2, strict=True)]
        ends = (new.width, new.height) * 2
        inside = [min(max(edge, 0.0), float(end)) for edge, end in zip(edges, ends, strict=True)]
        if _area(inside) >= MIN_VISIBLE * _area(edges):
            visible.append(Box(*inside, box.label))
    return visible


def _area(edges: list[float]) -> float:
    return max(0.0, edges[2] - edges[0]) * max(0.0, edges[3] - edges[1])


def box_columns(
    rows: list[list[Box]], names: list[str] | None, report: Report
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The columns `boxes` and `counts` of the images' boxes, and the class names.

    `boxes` is float32 (N, M, 5): left, top, right, bottom and class, -1 where an image has fewer; `counts` is (N,).
    """
    labels = {box.label for row in rows for box in row}
    if not labels:
        raise report.invalid("No image has a box.", field="layout", remedy="Add boxes, or import with layout=plain.")
    classes = names or sorted(labels, key=natural)
    class_index = {label: index for index, label in enumerate(classes)} | {
        index: index for index in range(len(classes))
    }
    table = np.zeros((len(rows), max(map(len, rows)), 5), np.float32)
    table[..., 4] = -1
    for index, row in enumerate(rows):
        for position, box in enumerate(row):
            table[index, position] = *box[:4], class_index[box.label]
    return {"boxes": table, "counts": np.array([len(row) for row in rows], np.int64)}, classes


def read_array(array: Array, names: list[str] | None) -> tuple[list[list[Box]], list[str]]:
    """The boxes of each image and the class names, from an array (N, M, 5) of left, top, right, bottom, class or -1."""
    if len(array.shape) != 3 or array.shape[2] != 5 or array.dtype.kind not in "uif":
        raise InvalidDataset(
            f"The array {array.name} must hold numbers of shape (N, M, 5); it has the shape {list(array.shape)}.",
            remedy="Store left, top, right, bottom and class of up to M objects per image, class -1 to fill up.",
        )
    values = array.whole().astype(np.float64)
    classes = values[..., 4]
    count = len(names) if names else MAX_CLASSES
    if not np.isfinite(classes).all() or (classes != np.rint(classes)).any() or classes.max(initial=-1) >= count:
        raise InvalidDataset(
            f"The classes in {array.name}, the last of the five numbers, must be whole numbers from -1 to {count - 1}."
        )
    return as_boxes(values), names or [str(index) for index in range(int(classes.max(initial=0)) + 1)]


def as_boxes(values: np.ndarray) -> list[list[Box]]:
    """Rows (N, M, 5) of numbers as boxes with class indices, without the filling rows of class -1."""
    return [[Box(*row[:4], int(row[4])) for row in image if row[4] >= 0] for image in values.tolist()]
