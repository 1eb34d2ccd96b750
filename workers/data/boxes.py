"""Boxes of objects in images: read from boxes.csv or an array, checked, scaled with their image, made into columns."""

import csv
import io
import math
from collections import defaultdict
from typing import NamedTuple

import numpy as np

from app.core.errors import InvalidDataset, InvalidImage
from app.core.names import natural
from workers.data.layouts import SPLITS
from workers.data.npz import Array
from workers.data.rows import MAX_CLASSES, Report, Size, printable

COLUMNS = ("file", "label", "left", "top", "right", "bottom")
MOST = 64
KEPT = 0.3
"""A box of which cropping leaves a smaller share is left out."""


class Box(NamedTuple):
    """Edges in pixels of the image, right and bottom exclusive; the label is a name or a class index."""

    left: float
    top: float
    right: float
    bottom: float
    label: str | int


class Objects(NamedTuple):
    """What boxes.csv says of one file; `bad`: one of its lines cannot be used, so the file cannot either."""

    boxes: list[tuple[str, Box]]
    """With the name of its line."""
    split: str | None
    bad: bool = False


def read_boxes(data: bytes, report: Report) -> dict[str, Objects]:
    """Objects by file name; a line with a file and nothing else says that there is none in it."""
    try:
        lines = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidDataset("boxes.csv is not a table in UTF-8 with commas and a first line of names.") from error
    given = {name: name.strip().lower() for name in (lines[0] if lines else {}) if name}
    if missing := [name for name in COLUMNS if name not in given.values()]:
        raise InvalidDataset(
            f"boxes.csv lacks the column {missing[0]}; it has a line for each object with {', '.join(COLUMNS)}, in "
            "pixels, right and bottom just outside the object."
        )
    found: dict[str, Objects] = defaultdict(lambda: Objects([], None))
    for number, line in enumerate(lines, start=2):
        cells = {column: (line[name] or "").strip() for name, column in given.items()}
        where, file = f"boxes.csv line {number}", cells["file"].replace("\\", "/").removeprefix("./")
        old = found[file]
        split = SPLITS.get(cells.get("split", "").lower()) or old.split
        try:
            box = _read(cells)
        except InvalidImage as error:
            report.refuse(where, error.detail)
            found[file] = Objects(old.boxes, split, bad=True)
        else:
            found[file] = Objects([*old.boxes, *([(where, box)] if box else [])], split, old.bad)
    return dict(found)


def _read(cells: dict[str, str]) -> Box | None:
    if not cells["file"]:
        raise InvalidImage("The line has no file.")
    if not any(cells[name] for name in COLUMNS[1:]):
        return None
    if not cells["label"]:
        raise InvalidImage("The line has no label.")
    edges = []
    for name in COLUMNS[2:]:
        try:
            edges.append(float(cells[name]))
        except ValueError:
            raise InvalidImage(f"The {name} is not a number.") from None
    return Box(*edges, printable(cells["label"]))


def check(box: Box, height: int, width: int) -> None:
    """Raises InvalidImage for a box that is none, or not inside the image."""
    if not all(math.isfinite(edge) for edge in box[:4]):
        raise InvalidImage("The box has an edge that is not a finite number.")
    if not (box.left < box.right and box.top < box.bottom):
        raise InvalidImage("The box has no area: right must be more than left and bottom more than top.")
    if not (box.left >= 0 and box.top >= 0 and box.right <= width and box.bottom <= height):
        raise InvalidImage(
            f"The box ({box.left:g}, {box.top:g}, {box.right:g}, {box.bottom:g}) is not inside its image of "
            f"{width} x {height} pixels (width x height)."
        )


def fitted(boxes: list[Box], given: Size, wanted: Size) -> list[Box]:
    """The boxes after codecs.fit brought their image to the size; those of which it left little are gone."""
    scale = min(given.height / wanted.height, given.width / wanted.width)
    top, left = (given.height - wanted.height * scale) / 2, (given.width - wanted.width * scale) / 2
    kept = []
    for box in boxes:
        edges = [(edge - start) / scale for edge, start in zip(box[:4], (left, top) * 2, strict=True)]
        ends = (wanted.width, wanted.height) * 2
        inside = [min(max(edge, 0.0), float(end)) for edge, end in zip(edges, ends, strict=True)]
        if _area(inside) >= KEPT * _area(edges):
            kept.append(Box(*inside, box.label))
    return kept


def _area(edges: list[float]) -> float:
    return max(0.0, edges[2] - edges[0]) * max(0.0, edges[3] - edges[1])


def columns(rows: list[list[Box]], names: list[str] | None, report: Report) -> tuple[dict[str, np.ndarray], list[str]]:
    """`boxes` float32 (N, M, 5) of left, top, right, bottom and class, -1 where an image has fewer; `counts` (N,)."""
    labels = {box.label for row in rows for box in row}
    if not labels:
        raise report.invalid("No image has a box.", field="layout", remedy="Import with layout=plain.")
    classes = names or sorted(labels, key=natural)
    index = {label: place for place, label in enumerate(classes)} | {place: place for place in range(len(classes))}
    most = max(map(len, rows))
    found = np.zeros((len(rows), most, 5), np.float32)
    found[..., 4] = -1
    for place, row in enumerate(rows):
        for position, box in enumerate(row):
            found[place, position] = *box[:4], index[box.label]
    return {"boxes": found, "counts": np.array([len(row) for row in rows], np.int64)}, classes


def read_array(array: Array, names: list[str] | None) -> tuple[list[list[Box]], list[str]]:
    """The boxes of an npz by image, and the class names: (N, M, 5) of left, top, right, bottom, class or -1."""
    if len(array.shape) != 3 or array.shape[2] != 5 or array.dtype.kind not in "uif":
        raise InvalidDataset(
            f"The array {array.name} has the shape {list(array.shape)}; numbers (N, M, 5) are read: left, top, right, "
            "bottom and class of up to M objects in an image, class -1 where there are fewer."
        )
    values = array.whole().astype(np.float64)
    kinds = values[..., 4]
    count = len(names) if names else MAX_CLASSES
    if not np.isfinite(kinds).all() or (kinds != np.rint(kinds)).any() or kinds.max(initial=-1) >= count:
        raise InvalidDataset(
            f"The classes in {array.name}, the last of the five numbers, have to be whole, -1 to {count - 1}."
        )
    return as_boxes(values), names or [str(index) for index in range(int(kinds.max(initial=0)) + 1)]


def as_boxes(values: np.ndarray) -> list[list[Box]]:
    """Rows (N, M, 5) of numbers as boxes with class indices, without those that fill up."""
    return [[Box(*row[:4], int(row[4])) for row in image if row[4] >= 0] for image in values.tolist()]
