"""The `checkpoint` column of a job: the newest checkpoints, to resume from, and marks along a training, to fork from.

An entry is {"key", "sha256", "bytes"}, of a training with "images"; its blob is written before the row names it.
"""

from typing import Any

CHECKPOINT = "checkpoint-"
"""How the names of their blobs begin, in the folder of an attempt."""
Entry = dict[str, Any]
Ref = dict[str, Any] | None


def newest(ref: Ref) -> list[Entry]:
    """The checkpoints to resume from, the newest first."""
    return list((ref or {}).get("kept", []))


def marks(ref: Ref) -> list[Entry]:
    """The checkpoints to fork from, the earliest first."""
    return list((ref or {}).get("marks", []))


def at(ref: Ref, images: int) -> list[Entry]:
    """The checkpoints after exactly `images` images."""
    return [entry for entry in newest(ref) + marks(ref) if entry.get("images") == images]


def points(ref: Ref) -> list[int]:
    """Counts of images at which there is a checkpoint; none for jobs that are no trainings."""
    return sorted({entry["images"] for entry in newest(ref) + marks(ref) if "images" in entry})


def marked(before: list[Entry], entry: Entry, budget: int) -> list[Entry]:
    """The marks with one more; the earliest are dropped while all together exceed `budget` bytes."""
    entries = [old for old in before if old["images"] != entry["images"]] + [entry]
    entries.sort(key=lambda mark: mark["images"])
    while entries and sum(mark["bytes"] for mark in entries) > budget:
        del entries[0]
    return entries
