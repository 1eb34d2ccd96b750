"""The last steps of an import: split, arrays as .npy files, facts, digest, upload."""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from app.core.store import blobs
from workers.codecs import fit, grid_png
from workers.data.checks import advise, advise_on_classes, check_sides, examine, facts_of_people
from workers.data.classes import mask_codes, name_values
from workers.data.rows import Report
from workers.data.split import TRAIN, VALIDATION, split
from workers.data.table import Column, Table, chunk_rows

THUMBNAILS, THUMBNAIL_SIDE = 64, 64


class Published(NamedTuple):
    digest: str
    facts: dict[str, Any]
    bytes: int
    existed: bool = False
    """Whether the arrays existed already, from an import of the same images."""


def publish(
    table: Table, layout: str, folder: Path, report: Report, tick: Callable[[], None], twins: bool = False
) -> Published:
    """Turns a table into a stored dataset. `tick` is called between pieces of work and may raise to stop.

    With `twins`, which wants the splits given, the facts say that validation rows of a and b belong together.
    """
    table.check_sizes()
    if not table.records:
        why = report.reasons.most_common(1)
        reason = f" {report.refused_count} files were refused, most often because: {why[0][0]}" if why else ""
        raise report.invalid(f"The upload has no usable image.{reason}")
    findings = {name: examine(column.array(), tick) for name, column in table.columns.items()}
    check_sides(layout, findings, report)
    keys = [[findings[name].keys[record.index] for name in record.columns] for record in table.records]
    groups = [[record.group.encode()] if record.group else [] for record in table.records]
    sides = split(
        [[*row, *group] for row, group in zip(keys, groups, strict=True)],
        ["+".join(record.columns) for record in table.records],
        [record.split for record in table.records],
    )
    advise(table, findings, sides, report)
    values, classes = name_values(table, layout, report)
    if "labels" in values:
        advise_on_classes(values["labels"].tolist(), [row[0] for row in keys], classes, report)
    columns = {side: _write(table, side, sides, values, folder / side, tick) for side in (TRAIN, VALIDATION)}
    facts = {
        "layout": layout,
        "height": table.size.height,
        "width": table.size.width,
        "channels": table.channels,
        "classes": classes,
        "columns": columns,
    }
    facts |= facts_of_people(values, [index for index, side in enumerate(sides) if side == TRAIN], report)
    if twins and None not in sides:  # a row left out would shift all that follow
        facts["twins"] = True
    _thumbnails(table, folder / "thumbnails.png")
    table.close()  # the disk need not hold the rows twice while they are uploaded
    return _upload(folder, facts, tick)


def _write(
    table: Table,
    side: str,
    sides: list[str | None],
    values: dict[str, np.ndarray],
    folder: Path,
    tick: Callable[[], None],
) -> dict[str, int]:
    """The .npy files of one side of the split; gives the number of rows by column."""
    rows = [index for index, here in enumerate(sides) if here == side]
    folder.mkdir()
    counts = {}
    for name, column in table.columns.items():
        order = [table.records[row].index for row in rows if name in table.records[row].columns]
        counts[name] = _gather(column, order, folder / f"{name}.npy", tick)
    if table.masks:
        order = [table.records[row].index for row in rows]
        counts["masks"] = _gather(table.masks, order, folder / "masks.npy", tick, mask_codes(table))
    for name, (column, order) in _placed(table, values, rows).items():
        counts[name] = len(order)
        np.save(folder / f"{name}.npy", column[order], allow_pickle=False)
    if not rows:
        for file in folder.iterdir():
            file.unlink()
        return {}
    return counts


def _placed(table: Table, values: dict[str, np.ndarray], rows: list[int]) -> dict[str, tuple[np.ndarray, list[int]]]:
    """Columns that are not pixels and the rows they have; each of two domains gets its own, a_labels and b_labels."""
    if "a" not in table.columns:
        return {name: (column, rows) for name, column in values.items()}
    own = {domain: [row for row in rows if domain in table.records[row].columns] for domain in table.columns}
    return {f"{domain}_{name}": (column, own[domain]) for domain in own for name, column in values.items()}


def _gather(
    column: Column, order: list[int], path: Path, tick: Callable[[], None], codes: np.ndarray | None = None
) -> int:
    """The rows in this order, through the table `codes` of their values if there is one."""
    source = column.array()
    with path.open("wb") as file:
        head = {"descr": "|u1", "fortran_order": False, "shape": (len(order), *column.shape)}
        np.lib.format.write_array_header_1_0(file, head)
        step = chunk_rows(source)
        for start in range(0, len(order), step):
            tick()
            piece = source[order[start : start + step]]
            file.write((piece if codes is None else codes[piece]).data)
    return len(order)


def _thumbnails(table: Table, path: Path) -> None:
    per_column = THUMBNAILS // len(table.columns)
    scale = min(1, THUMBNAIL_SIDE / max(table.size))
    height, width = (max(1, round(side * scale)) for side in table.size)
    pictures = []
    for column in table.columns.values():
        array = column.array()
        chosen = np.linspace(0, len(array) - 1, min(per_column, len(array))).astype(int)
        pictures.append([fit(image, height, width) for image in array[chosen]])
    longest = max(map(len, pictures))
    # pairs side by side
    mixed = [images[index] for index in range(longest) for images in pictures if index < len(images)]
    path.write_bytes(grid_png(np.stack(mixed), columns=8))


def _upload(folder: Path, facts: dict[str, Any], tick: Callable[[], None]) -> Published:
    """Stores the files under the digest of arrays and facts; facts.json comes last and says that all is there."""
    head = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    digest, files = hashlib.sha256(head), sorted(folder.glob("*/*.npy"))
    for file in files:
        tick()
        with file.open("rb") as stream:
            digest.update(f"{file.parent.name}/{file.name}".encode())
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    prefix = f"datasets/{digest.hexdigest()}"
    size = len(head) + sum(file.stat().st_size for file in files)
    found = blobs.exists(f"{prefix}/facts.json")
    if not found:
        for file in [folder / "thumbnails.png", *files]:
            tick()
            with suppress(FileExistsError):
                blobs.put(f"{prefix}/{file.relative_to(folder)}", file)
        with suppress(FileExistsError):
            blobs.put(f"{prefix}/facts.json", head)
    return Published(digest.hexdigest(), facts, size, found)
