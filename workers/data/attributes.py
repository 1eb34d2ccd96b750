"""labels.csv: one line per image, its `file` and any of `label`, `target`, `age`, `identity` and `split`."""

import csv
import io
import math
from typing import NamedTuple

from app.core.errors import InvalidDataset, InvalidImage
from workers.data.layouts import SPLITS
from workers.data.rows import Report, printable

COLUMNS = {"label": "labels", "target": "targets", "age": "ages", "identity": "identities"}
MAX_BYTES = 16 << 20
MAX_NAMED = 10


class Attributes(NamedTuple):
    values: dict[str, str | float]
    split: str | None


def read_labels(data: bytes, report: Report) -> dict[str, Attributes]:
    """Attributes by file name; lines that cannot be used are in the report."""
    try:
        lines = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidDataset("labels.csv is not a table in UTF-8 with commas and a first line of names.") from error
    given = [name for name in (lines[0] if lines else {}) if name]
    columns = {name: name.strip().lower() for name in given}
    known = [name for name, column in columns.items() if column in COLUMNS]
    if "file" not in columns.values() or not known:
        named = f" It has {', '.join(map(printable, given[:MAX_NAMED]))}." if given else ""
        raise InvalidDataset(
            f"labels.csv needs the column file and at least one of {', '.join(COLUMNS)}; "
            f"its first line must name them, separated by commas.{named}",
            field="labels.csv",
        )
    if unknown := [name for name in given if columns[name] not in {*COLUMNS, "file", "split"}]:
        more = f" and {len(unknown) - MAX_NAMED} more" if len(unknown) > MAX_NAMED else ""
        named = ", ".join(map(printable, unknown[:MAX_NAMED]))
        report.warn(
            f"Columns of labels.csv that were not used: {named}{more}. "
            f"Those that are read are file, split, {', '.join(COLUMNS)}."
        )
    return _by_file(lines, columns, report)


def _by_file(lines: list[dict], columns: dict[str, str], report: Report) -> dict[str, Attributes]:
    files: dict[str, Attributes] = {}
    for number, line in enumerate(lines, start=2):
        cells = {column: (line[name] or "").strip() for name, column in columns.items()}
        name = cells.pop("file").replace("\\", "/").removeprefix("./")
        split = SPLITS.get(cells.pop("split", "").lower())
        try:
            if not name:
                raise InvalidImage("The line has no file.")
            if name in files:
                raise InvalidImage("The file has two lines.")
            files[name] = Attributes({COLUMNS[c]: _value(c, cells[c]) for c in cells if c in COLUMNS}, split)
        except InvalidImage as error:
            report.refuse(f"labels.csv line {number}", error.detail)
    return files


def _value(column: str, cell: str) -> str | float:
    if not cell:
        raise InvalidImage(f"The line has no {column}.")
    if column in ("label", "identity"):
        return printable(cell)
    try:
        number = float(cell)
    except ValueError:
        raise InvalidImage(f"The {column} is not a number.") from None
    if not math.isfinite(number) or abs(number) > 1e30:
        raise InvalidImage(f"The {column} is not a finite number.")
    if column == "age" and number < 0:
        raise InvalidImage("The age is negative.")
    return number
