"""Reads labels.csv: a line per image with its `file` and any of `label`, `target`, `age`, `identity` and `split`."""

import csv
import io
import math
from typing import NamedTuple

from app.core.errors import InvalidDataset, InvalidImage
from workers.data.layouts import SPLITS
from workers.data.rows import Report, printable

COLUMNS = {"label": "labels", "target": "targets", "age": "ages", "identity": "identities"}
MAX_BYTES = 16 << 20
MAX_LISTED = 10
MAX_NUMBER = 1e30
MAX_SHOWN = 40


class Attributes(NamedTuple):
    values: dict[str, str | float]
    split: str | None


def read_labels(data: bytes, report: Report) -> dict[str, Attributes]:
    """Attributes by file name; unusable lines are refused in the report."""
    lines, columns = read_table("labels.csv", data)
    if "file" not in columns.values() or not COLUMNS.keys() & set(columns.values()):
        raise InvalidDataset(
            f"labels.csv needs the column file and at least one of {', '.join(COLUMNS)}; "
            f"its columns are {_listed(list(columns))}.",
            field="labels.csv",
            remedy="Name the columns in the first line, separated by commas.",
        )
    if unknown := [name for name, column in columns.items() if column not in {*COLUMNS, "file", "split", "group"}]:
        report.warn(
            f"Columns of labels.csv that were not used: {_listed(unknown)}. "
            f"The known columns are file, split, group, {', '.join(COLUMNS)}."
        )
    return _by_file(lines, columns, report)


def read_groups(file: str, data: bytes) -> dict[str, str]:
    """The column `group` of the CSV `file` by file name, without empty cells; empty if there is no such column."""
    lines, columns = read_table(file, data)
    names = {column: name for name, column in columns.items()}
    if not {"file", "group"} <= names.keys():
        return {}
    pairs = (((line[names["file"]] or "").strip(), (line[names["group"]] or "").strip()) for line in lines)
    return {name.replace("\\", "/").removeprefix("./"): group for name, group in pairs if group}


def read_table(file: str, data: bytes) -> tuple[list[dict[str, str]], dict[str, str]]:
    """The lines of the CSV `file` by header name, and each header name in lower case without spaces around it."""
    try:
        lines = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidDataset(
            f"{file} is not a CSV table: it must be UTF-8 text with commas and a first line of column names.",
            field=file,
        ) from error
    if not lines:
        raise InvalidDataset(f"{file} has no line after its header.", field=file, remedy="Write a line per file.")
    return lines, {name: name.strip().lower() for name in lines[0] if name}


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(map(printable, names[:MAX_LISTED])) + more if names else "missing"


def _by_file(lines: list[dict], columns: dict[str, str], report: Report) -> dict[str, Attributes]:
    files: dict[str, Attributes] = {}
    for number, line in enumerate(lines, start=2):
        cells = {column: (line[name] or "").strip() for name, column in columns.items()}
        name = cells.pop("file").replace("\\", "/").removeprefix("./")
        split = SPLITS.get(cells.pop("split", "").lower())
        try:
            if not name:
                raise InvalidImage("The column file is empty.")
            if name in files:
                raise InvalidImage(f"The file {printable(name)} has a line already.")
            values = {COLUMNS[c]: _value(c, cells[c]) for c in cells if c in COLUMNS}
            files[name] = Attributes(values, split)
        except InvalidImage as error:
            report.refuse(f"labels.csv line {number}", error.detail)
    return files


def _value(column: str, cell: str) -> str | float:
    if not cell:
        raise InvalidImage(f"The column {column} is empty.")
    if column in ("label", "identity"):
        return printable(cell)
    number = read_number(column, cell)
    if not math.isfinite(number) or abs(number) > MAX_NUMBER:
        raise InvalidImage(f"{column} must be a finite number of at most {MAX_NUMBER:g} in size; found {number:g}.")
    if column == "age" and number < 0:
        raise InvalidImage(f"age must not be negative; found {number:g}.")
    return number


def read_number(column: str, cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise InvalidImage(f"{column} must be a number; found {printable(cell[:MAX_SHOWN])!r}.") from None
