"""Names to numbers: labels, identities and mask values become indices, in natural order of their names."""

import numpy as np

from app.core.catalog.describe import joined
from app.core.names import natural
from workers.data.boxes import columns
from workers.data.rows import MAX_CLASSES, VALUE_TYPES, Report
from workers.data.table import Table

LISTED = 12


def name_values(table: Table, layout: str, report: Report) -> tuple[dict[str, np.ndarray], list[str] | None]:
    """The columns that are not pixels, and the class names; names become indices in natural order."""
    values, classes = {}, None
    for column in table.records[0].values:
        given = [record.values[column] for record in table.records]
        if column == "labels":
            classes = table.classes or sorted(set(given), key=natural)
            given = given if table.classes else _indices(given, classes)
        elif column == "identities":
            given = [str(value) for value in given]
            given = _indices(given, sorted(set(given), key=natural))
        values[column] = np.array(given, VALUE_TYPES[column])
    if layout == "detection":
        found, classes = columns([record.boxes for record in table.records], table.classes, report)
        values |= found
    if layout == "segmentation":
        classes = table.classes or _mask_classes(table, report)
    return values, classes and _check(classes, report, least=1 if layout == "detection" else 2)


def _indices(names: list[str], order: list[str]) -> list[int]:
    index = {name: position for position, name in enumerate(order)}
    return [index[name] for name in names]


def _mask_classes(table: Table, report: Report) -> list[str]:
    found = np.flatnonzero(table.mask_values).tolist()
    if set(found) == {0, 255}:
        return ["0", "1"]  # the usual way to save a yes/no mask that people can look at
    if 255 in found:
        raise report.invalid(
            f"The masks use {len(found)} values and 255 among them, which often means 'ignore'.",
            remedy="Add classes.json with the names of the classes 0, 1, ...; masks with other values are refused.",
        )
    if found != list(range(len(found))):
        values = joined(map(str, found)) if len(found) <= LISTED else f"{found[0]}, {found[1]} ... {found[-1]}"
        report.warn(
            f"The masks use the values {values}: these are the classes, numbered from 0 in this order and named by"
            " their values. Masks that mean other classes need classes.json with all names."
        )
    return [str(value) for value in found]


def mask_codes(table: Table) -> np.ndarray | None:
    """(256,) the class index of each mask value; None where masks hold indices already."""
    found = np.flatnonzero(table.mask_values)
    if table.classes or not len(found) or found[-1] == len(found) - 1:
        return None
    codes = np.zeros(256, np.uint8)
    codes[found] = np.arange(len(found))
    return codes


def _check(classes: list[str], report: Report, least: int) -> list[str]:
    if not least <= len(classes) <= MAX_CLASSES:
        found = "one class" if len(classes) == 1 else f"{len(classes)} classes"
        raise report.invalid(
            f"The dataset has {found}; {least} to {MAX_CLASSES} are possible.",
            field="layout",
            remedy="Import with layout=plain to leave the classes away.",
        )
    return classes
