"""What an import is made of: rows on their way into arrays, the options they are read with, the report of trouble."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol
from unicodedata import category

import numpy as np

from app.core.errors import InvalidDataset

LAYOUTS = ("plain", "labelled", "paired", "unpaired", "segmentation", "attributes", "detection")
SMALLEST_SIDE, LARGEST_SIDE = 8, 256
MAX_IMAGES = 70_000
MAX_CLASSES = 1000
MAX_REPORTED = 200
MAX_NAME = 200

IMAGE_COLUMNS = ("images", "input", "target", "a", "b")
VALUE_TYPES = {"labels": np.int64, "identities": np.int64, "targets": np.float32, "ages": np.float32}


@dataclass(slots=True)
class Row:
    """One example: uint8 (C, H, W) by image column, and whatever is known about it."""

    name: str
    images: dict[str, np.ndarray]
    mask: np.ndarray | None = None
    values: dict[str, str | int | float] = field(default_factory=dict)
    split: str | None = None
    group: str | None = None
    boxes: list | None = None
    """Of objects in the image; see workers/data/boxes.py."""


class Size(NamedTuple):
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"

    @property
    def usable(self) -> bool:
        return all(SMALLEST_SIDE <= side <= LARGEST_SIDE for side in self)


class Source(Protocol):
    """An upload or built-in being read: `rows()` yields up to `total` rows, and None for what was refused.

    `twins`: validation rows number n of the columns a and b, in the order they come, show the same thing.
    """

    layout: str
    classes: list[str] | None
    total: int
    twins: bool

    def rows(self) -> Iterator[Row | None]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Options:
    """How an upload is to be read; None means: as it is found."""

    layout: str | None = None
    size: Size | None = None
    channels: int | None = None

    @classmethod
    def read(cls, spec: dict[str, Any]) -> "Options":
        layout, channels = spec.get("layout"), spec.get("channels")
        if layout is not None and layout not in LAYOUTS:
            raise InvalidDataset(f"layout is one of {', '.join(LAYOUTS)}.", field="layout")
        if str(channels) not in ("None", "1", "3"):
            raise InvalidDataset("channels is 1 (gray) or 3 (colour).", field="channels")
        return cls(layout, read_size(spec.get("image_size")), channels and int(channels))


def read_size(text: str | int | None) -> Size | None:
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,4})(?:x([0-9]{1,4}))?", str(text).strip().lower())
    size = match and Size(int(match[1]), int(match[2] or match[1]))
    if not size or not size.usable:
        raise InvalidDataset(
            f"image_size is a side such as 64 or height x width such as 48x64, {SMALLEST_SIDE} to {LARGEST_SIDE} each.",
            field="image_size",
        )
    return size


class Report:
    """Refused members with reasons, and remarks about the whole; goes into the job's result."""

    def __init__(self) -> None:
        self.refused: list[dict[str, str]] = []
        self.refused_count = 0
        self.reasons: Counter[str] = Counter()
        self.warnings: list[str] = []

    def refuse(self, name: str, reason: str) -> None:
        self.refused_count += 1
        self.reasons[reason] += 1
        if len(self.refused) < MAX_REPORTED:
            self.refused.append({"file": printable(name), "reason": reason})

    def warn(self, sentence: str) -> None:
        if sentence not in self.warnings:
            self.warnings.append(sentence)

    def invalid(self, detail: str, **options: Any) -> InvalidDataset:
        """An error for the whole upload that carries what was refused."""
        return InvalidDataset(detail, refused=self.refused, refused_count=self.refused_count, **options)


def printable(name: str) -> str:
    """A foreign name without what terminals, JSON or databases stumble over: control characters, lone surrogates."""
    shown = (char if char.isprintable() or category(char) == "Zs" else "?" for char in name[:MAX_NAME])
    return "".join(shown)
