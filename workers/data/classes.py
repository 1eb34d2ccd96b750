"""Names to numbers: labels, identities and mask values become indices, in natural order of their names."""

import numpy as np

from app.core.names import natural
from workers.data.boxes import columns
from workers.data.rows import MAX_CLASSES, VALUE_TYPES, Report
from workers.data.table import Table


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
    return [str(index) for index in range(found[-1] + 1)]


def _check(classes: list[str], report: Report, least: int) -> list[str]:
    if not least <= len(classes) <= MAX_CLASSES:
        found = "one class" if len(classes) == 1 else f"{len(classes)} classes"
        raise report.invalid(
            f"The dataset has {found}; {least} to {MAX_CLASSES} are possible.",
            field="layout",
            remedy="Import with layout=plain to leave the classes away.",
        )
    return classes
