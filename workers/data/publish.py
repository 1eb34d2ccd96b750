"""The last steps of an import: splits the rows, writes .npy files and facts, and stores them under their digest."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from app.core.errors import StorageDamaged
from app.core.store import blobs, integrity
from workers.codecs import fit, grid_png
from workers.data.checks import age_and_identity_facts, check_sides, column_stats, warn_about_classes, warn_about_images
from workers.data.classes import MISSING, mask_codes, name_values
from workers.data.rows import Report
from workers.data.split import TRAIN, VALIDATION, split
from workers.data.table import Column, Table, chunk_rows

MAX_THUMBNAILS, THUMBNAIL_SIDE = 64, 64


class Published(NamedTuple):
    digest: str
    facts: dict[str, Any]
    bytes: int
    existed: bool = False
    """Whether the arrays existed already, from an import of the same images."""


def publish(
    table: Table, layout: str, folder: Path, report: Report, tick: Callable[[], None], twins: bool = False
) -> Published:
    """Stores a table as a dataset. `tick` is called between steps and may raise to stop.

    With `twins`, which needs stated splits, the facts say that row n of a and of b in validation show the same thing.
    """
    table.check_sizes()
    if not table.records:
        raise report.no_usable_image()
    stats = {name: column_stats(column.array(), tick) for name, column in table.columns.items()}
    check_sides(layout, stats, report)
    keys = [[stats[name].keys[record.index] for name in record.columns] for record in table.records]
    groups = [[record.group.encode()] if record.group else [] for record in table.records]
    sides = split(
        [[*row, *group] for row, group in zip(keys, groups, strict=True)],
        ["+".join(record.columns) for record in table.records],
        [record.split for record in table.records],
    )
    warn_about_images(table, stats, sides, report)
    values, classes = name_values(table, layout, report)
    if "labels" in values:
        labelled = [
            (label, row[0]) for label, row in zip(values["labels"].tolist(), keys, strict=True) if label != MISSING
        ]
        warn_about_classes(*map(list, zip(*labelled, strict=True)), classes, report)
    columns = {side: _write(table, side, sides, values, folder / side, tick) for side in (TRAIN, VALIDATION)}
    facts = {
        "layout": layout,
        "height": table.size.height,
        "width": table.size.width,
        "channels": table.channels,
        "classes": classes,
        "columns": columns,
    }
    facts |= age_and_identity_facts(values, [index for index, side in enumerate(sides) if side == TRAIN], report)
    if twins and None not in sides:  # a removed row would shift all that follow
        facts["twins"] = True
    _thumbnails(table, folder / "thumbnails.png")
    table.close()  # frees the disk before the files are copied to the store
    return _upload(folder, facts, tick)


def _write(
    table: Table,
    side: str,
    sides: list[str | None],
    values: dict[str, np.ndarray],
    folder: Path,
    tick: Callable[[], None],
) -> dict[str, int]:
    """Writes the .npy files of one side of the split; returns the number of rows by column."""
    rows = [index for index, here in enumerate(sides) if here == side]
    folder.mkdir()
    counts = {}
    for name, column in table.columns.items():
        order = [table.records[row].index for row in rows if name in table.records[row].columns]
        counts[name] = _gather(column, order, folder / f"{name}.npy", tick)
    if table.masks:
        order = [table.records[row].index for row in rows]
        counts["masks"] = _gather(table.masks, order, folder / "masks.npy", tick, mask_codes(table))
    for name, (column, order) in _values_with_rows(table, values, rows).items():
        counts[name] = len(order)
        np.save(folder / f"{name}.npy", column[order], allow_pickle=False)
    if not rows:
        for file in folder.iterdir():
            file.unlink()
        return {}
    return counts


def _values_with_rows(
    table: Table, values: dict[str, np.ndarray], rows: list[int]
) -> dict[str, tuple[np.ndarray, list[int]]]:
    """Each column without pixels with its rows; of two domains each has its own, a_labels and b_labels."""
    if "a" not in table.columns:
        return {name: (column, rows) for name, column in values.items()}
    own = {domain: [row for row in rows if domain in table.records[row].columns] for domain in table.columns}
    return {
        f"{domain}_{name}": (column, order)
        for domain, order in own.items()
        for name, column in values.items()
        if (column[order] != MISSING).all()
    }


def _gather(
    column: Column, order: list[int], path: Path, tick: Callable[[], None], codes: np.ndarray | None = None
) -> int:
    """Writes the rows in this order, mapped through `codes` (256,) if given; returns their number."""
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
    """Writes a contact sheet of up to 64 images, evenly spaced in each column."""
    per_column = MAX_THUMBNAILS // len(table.columns)
    scale = min(1, THUMBNAIL_SIDE / max(table.size))
    height, width = (max(1, round(side * scale)) for side in table.size)
    pictures = []
    for column in table.columns.values():
        array = column.array()
        rows = np.linspace(0, len(array) - 1, min(per_column, len(array))).astype(int)
        pictures.append([fit(image, height, width) for image in array[rows]])
    longest = max(map(len, pictures))
    # the images of a pair side by side
    sheet = [images[index] for index in range(longest) for images in pictures if index < len(images)]
    path.write_bytes(grid_png(np.stack(sheet), columns=8))


def _upload(folder: Path, facts: dict[str, Any], tick: Callable[[], None]) -> Published:
    """Stores the files under the digest of arrays and facts; facts.json is written last and marks them complete.

    Files that exist already, from an import of the same images, are only written again where they are damaged.
    """
    head, hashes = integrity.dataset_head(facts), []
    for name in integrity.dataset_files(facts):
        tick()
        with (folder / name).open("rb") as stream:
            hashes.append((name, hashlib.file_digest(stream, "sha256").digest()))
    digest = integrity.dataset_digest(head, hashes)
    prefix, names = f"datasets/{digest}", [name for name, _ in hashes]
    size = len(head) + sum((folder / name).stat().st_size for name in names)
    existed = blobs.exists(f"{prefix}/facts.json")
    if not existed or _damaged(digest, head, facts):
        for name in ["thumbnails.png", *names]:
            tick()
            _put(f"{prefix}/{name}", folder / name, existed)
        _put(f"{prefix}/facts.json", head, existed)
    return Published(digest, facts, size, existed)


def _put(key: str, data: bytes | Path, replace: bool) -> None:
    with suppress(FileExistsError):
        blobs.put(key, data, create_only=not replace)


def _damaged(digest: str, head: bytes, facts: dict[str, Any]) -> bool:
    """Whether the stored files of the same images need to be written again."""
    try:
        integrity.check_dataset(digest, head, facts)
        return blobs.get(f"datasets/{digest}/facts.json") != head
    except StorageDamaged:
        return True
