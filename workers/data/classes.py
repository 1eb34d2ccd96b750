"""Turns labels, identities and mask values into indices, in natural order of their names."""

import numpy as np

from app.core.catalog.describe import joined
from app.core.names import natural
from workers.data.boxes import box_columns
from workers.data.rows import MAX_CLASSES, VALUE_TYPES, Report
from workers.data.table import Table

MAX_LISTED = 12
MISSING = -1
"""The value of rows of a domain without labels; they are not stored."""


def name_values(table: Table, layout: str, report: Report) -> tuple[dict[str, np.ndarray], list[str] | None]:
    """The columns that hold no pixels, and the class names."""
    values, classes = {}, None
    for column in table.records[0].values | table.records[-1].values:  # of two domains one alone may have labels
        rows = [index for index, record in enumerate(table.records) if column in record.values]
        cells = [table.records[index].values[column] for index in rows]
        if column == "labels":
            classes = table.classes or sorted(set(cells), key=natural)
            cells = cells if table.classes else _indices(cells, classes)
        elif column == "identities":
            names = [str(cell) for cell in cells]
            cells = _indices(names, sorted(set(names), key=natural))
        values[column] = np.full(len(table.records), MISSING, VALUE_TYPES[column])
        values[column][rows] = cells
    if layout == "detection":
        boxes, classes = box_columns([record.boxes for record in table.records], table.classes, report)
        values |= boxes
    if layout == "segmentation":
        classes = table.classes or _mask_classes(table, report)
    return values, classes and _check(classes, report, least=1 if layout == "detection" else 2)


def _indices(names: list[str], order: list[str]) -> list[int]:
    index = {name: position for position, name in enumerate(order)}
    return [index[name] for name in names]


def _mask_classes(table: Table, report: Report) -> list[str]:
    values = np.flatnonzero(table.mask_values).tolist()
    if set(values) == {0, 255}:
        return ["0", "1"]  # a binary mask saved so that it can be seen
    if 255 in values:
        raise report.invalid(
            f"The masks have {len(values)} values with 255 among them, which often means 'ignore'.",
            remedy="Add classes.json with the names of the classes 0, 1, ...; masks with other values are refused.",
        )
    if values != list(range(len(values))):
        text = joined(map(str, values)) if len(values) <= MAX_LISTED else f"{values[0]}, {values[1]} ... {values[-1]}"
        report.warn(
            f"The masks have the values {text}. They became the classes 0, 1, ... in this order, named by their values."
            " If other classes are meant, add classes.json with all names."
        )
    return [str(value) for value in values]


def mask_codes(table: Table) -> np.ndarray | None:
    """The class index of each mask value, uint8 (256,); None where masks hold indices already."""
    values = np.flatnonzero(table.mask_values)
    if table.classes or not len(values) or values[-1] == len(values) - 1:
        return None
    codes = np.zeros(256, np.uint8)
    codes[values] = np.arange(len(values))
    return codes


def _check(classes: list[str], report: Report, least: int) -> list[str]:
    if not least <= len(classes) <= MAX_CLASSES:
        count = "one class" if len(classes) == 1 else f"{len(classes)} classes"
        raise report.invalid(
            f"The dataset has {count}; between {least} and {MAX_CLASSES} are allowed.",
            field="layout",
            remedy="Import with layout=plain to ignore the classes.",
        )
    return classes
