"""Opens stored datasets as arrays mapped into memory: training reads rows straight from the files."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.core.errors import InvalidRequest, NotFound
from app.core.store import blobs, integrity
from app.core.store.database import reading
from app.core.store.datasets import stored
from workers.codecs import encode_masks, encode_png

AGAIN = "Or delete the dataset and import the same images again."
Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class OpenDataset:
    """`train` and `validation` hold read-only arrays by column; `validation` is empty where there is none."""

    digest: str
    facts: dict[str, Any]
    train: Columns
    validation: Columns


def open_dataset(digest: str, verify: bool = False) -> OpenDataset:
    """The arrays of a dataset. `verify`: all bytes are read and compared with the digest, once per process.

    Raises NotFound for a dataset that was deleted, StorageDamaged for missing or damaged files.
    """
    try:
        head = blobs.get(f"datasets/{digest}/facts.json")
        facts, sides = _opened(digest, head, verify)
    except FileNotFoundError:
        with reading() as conn:
            kept = stored(conn, digest)
        if kept:
            raise integrity.damaged(f"Files of dataset {digest[:12]} are missing from the blob store.", AGAIN) from None
        raise NotFound(f"The arrays of dataset {digest[:12]} no longer exist.", remedy="Import it again.") from None
    return OpenDataset(digest, facts, **sides)


def _opened(digest: str, head: bytes, verify: bool) -> tuple[dict[str, Any], dict[str, Columns]]:
    try:
        facts = json.loads(head)
        if verify:
            integrity.check_dataset(digest, head, facts)
        return facts, {side: _columns(digest, side, facts) for side in ("train", "validation")}
    except ValueError:
        raise integrity.damaged(f"Files of dataset {digest[:12]} are damaged.", AGAIN) from None


def images_page(
    digest: str, split: str = "train", column: str | None = None, start: int = 0, count: int = 100
) -> tuple[list[bytes], list[int] | None]:
    """PNGs of `count` rows from `start` and their labels, if any. `column`: by default the first image column."""
    columns = getattr(open_dataset(digest), split, None) if split in ("train", "validation") else None
    if columns is None:
        raise InvalidRequest(f"split must be train or validation; you sent {split!r}.", field="split")
    pictures = {name: array for name, array in columns.items() if array.dtype == np.uint8}
    column = column or next(iter(pictures), None)
    if column is None:
        return [], None
    if column not in pictures:
        raise InvalidRequest(f"Unknown column {column!r}. Choose one of {', '.join(pictures)}.", field="column")
    rows = slice(max(0, start), max(0, start) + max(0, count))
    encode = encode_masks if column == "masks" else encode_png
    labels = columns["labels"][rows].tolist() if "labels" in columns else None
    return encode(pictures[column][rows]), labels


def _columns(digest: str, side: str, facts: dict[str, Any]) -> Columns:
    files = {name: blobs.path(f"datasets/{digest}/{side}/{name}.npy") for name in facts["columns"][side]}
    return {name: np.load(file, mmap_mode="r", allow_pickle=False) for name, file in files.items()}
