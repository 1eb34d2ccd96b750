"""The column `checkpoint` of a training: the newest checkpoints, to resume from, and earlier ones, to fork from.

An entry is {"key", "sha256", "bytes", "images"}; its blob is written before the row names it.
"""

from typing import Any

CHECKPOINT = "checkpoint-"
"""Prefix of the names of their blobs in the folder of an attempt."""
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
    return [entry for entry in newest(ref) + marks(ref) if entry["images"] == images]


def points(ref: Ref) -> list[int]:
    """Numbers of images at which there is a checkpoint."""
    return sorted({entry["images"] for entry in newest(ref) + marks(ref)})


def marked(before: list[Entry], entry: Entry, budget: int) -> list[Entry]:
    """`before` and one more; the earliest are dropped while all take more than `budget` bytes."""
    result = [old for old in before if old["images"] != entry["images"]] + [entry]
    result.sort(key=lambda mark: mark["images"])
    while result and sum(mark["bytes"] for mark in result) > budget:
        del result[0]
    return result
