"""What a training's `checkpoint` column holds: the newest ones, to resume from, and marks along it, to fork from.

An entry is {"key", "sha256", "bytes", "images"}, its blob written before the row names it.
"""

from typing import Any

CHECKPOINT = "checkpoint-"
"""How the names of their blobs begin, in the folder of an attempt."""
Entry = dict[str, Any]
Ref = dict[str, Any] | None


def newest(ref: Ref) -> list[Entry]:
    """Those to resume from, the newest first."""
    return list((ref or {}).get("kept", []))


def marks(ref: Ref) -> list[Entry]:
    """Those that stay along the way, the earliest first."""
    return list((ref or {}).get("marks", []))


def at(ref: Ref, images: int) -> list[Entry]:
    """Those after exactly so many images."""
    return [entry for entry in newest(ref) + marks(ref) if entry["images"] == images]


def points(ref: Ref) -> list[int]:
    """Counts of images at which there is a checkpoint."""
    return sorted({entry["images"] for entry in newest(ref) + marks(ref)})


def marked(before: list[Entry], entry: Entry, budget: int) -> list[Entry]:
    """The marks with one more; the earliest go when they take more than `budget` bytes together."""
    marks_left = [old for old in before if old["images"] != entry["images"]] + [entry]
    marks_left.sort(key=lambda mark: mark["images"])
    while marks_left and sum(mark["bytes"] for mark in marks_left) > budget:
        del marks_left[0]
    return marks_left
