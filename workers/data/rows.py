"""The parts of an import: its rows, where they come from, the options they are read with, and the report."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol
from unicodedata import category

import numpy as np

from app.core.errors import InvalidDataset
from app.core.names import CODE_PAGES

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
    """An example: uint8 (C, H, W) by image column, with its mask, labels and other values."""

    name: str
    images: dict[str, np.ndarray]
    mask: np.ndarray | None = None
    values: dict[str, str | int | float] = field(default_factory=dict)
    split: str | None = None
    group: str | None = None
    boxes: list | None = None
    """Objects in the image; see boxes.py."""


class Size(NamedTuple):
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"

    @property
    def usable(self) -> bool:
        return all(SMALLEST_SIDE <= side <= LARGEST_SIDE for side in self)


class Source(Protocol):
    """An upload or built-in dataset being read: `rows()` yields up to `total` rows, None for a refused one.

    `twins`: validation row n of column a and row n of column b, in this order, show the same thing.
    """

    layout: str
    classes: list[str] | None
    total: int
    twins: bool

    def rows(self) -> Iterator[Row | None]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Options:
    """How to read an upload; None: as the upload has it."""

    layout: str | None = None
    size: Size | None = None
    channels: int | None = None
    names: str | None = None
    """Code page of the names in a zip that are neither marked as UTF-8 nor valid UTF-8."""

    @classmethod
    def read(cls, spec: dict[str, Any]) -> "Options":
        layout, channels = spec.get("layout"), spec.get("channels")
        if layout is not None and layout not in LAYOUTS:
            raise InvalidDataset(f"Unknown layout {layout!r}. Choose one of {', '.join(LAYOUTS)}.", field="layout")
        if str(channels) not in ("None", "1", "3"):
            raise InvalidDataset(
                f"channels must be 1 (gray) or 3 (colour); you sent {printable(str(channels))}.", field="channels"
            )
        names = spec.get("names")
        if names is not None and names not in CODE_PAGES:
            raise InvalidDataset(
                f"names must be one of {', '.join(CODE_PAGES)}; you sent {printable(str(names))}.", field="names"
            )
        return cls(layout, read_size(spec.get("image_size")), channels and int(channels), names)


def read_size(text: str | int | None) -> Size | None:
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,4})(?:x([0-9]{1,4}))?", str(text).strip().lower())
    size = match and Size(int(match[1]), int(match[2] or match[1]))
    if not size or not size.usable:
        raise InvalidDataset(
            f"image_size must be a side such as 64 or height x width such as 48x64, each from {SMALLEST_SIDE} to "
            f"{LARGEST_SIDE}; you sent {printable(str(text))}.",
            field="image_size",
        )
    return size


class Report:
    """The refused files with their reasons, and warnings about the dataset; part of the job's result."""

    def __init__(self) -> None:
        self.refused: list[dict[str, str]] = []
        self.refused_count = 0
        self.reasons: Counter[str] = Counter()  # by their words before the value found, which differs from file to file
        self.examples: dict[str, str] = {}
        self.warnings: list[str] = []

    def refuse(self, name: str, reason: str) -> None:
        self.refused_count += 1
        kind = reason.partition("; found")[0]
        self.reasons[kind] += 1
        self.examples.setdefault(kind, reason)
        if len(self.refused) < MAX_REPORTED:
            self.refused.append({"file": printable(name), "reason": reason})

    def warn(self, sentence: str) -> None:
        if sentence not in self.warnings:
            self.warnings.append(sentence)

    def invalid(self, detail: str, **options: Any) -> InvalidDataset:
        """An error about the whole upload, with the list of refused files."""
        return InvalidDataset(detail, refused=self.refused, refused_count=self.refused_count, **options)

    def no_usable_image(self) -> InvalidDataset:
        if not self.refused_count:
            return self.invalid("The upload has no usable image.", remedy="Send PNG, JPEG or WebP images.")
        reason = self.examples[self.reasons.most_common(1)[0][0]]
        return self.invalid(
            f"The upload has no usable image. {self.refused_count} files were refused, most often because: {reason}",
            remedy="See refused for the reason of each file.",
        )


def printable(name: str) -> str:
    """The first 200 characters of `name`, with ? for what terminals, JSON or databases cannot show."""
    return "".join(char if char.isprintable() or category(char) == "Zs" else "?" for char in name[:MAX_NAME])
