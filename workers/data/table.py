"""Scales rows to one size and number of channels and writes them to temporary files."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from app.core.errors import InvalidDataset
from app.core.settings import settings
from workers.codecs import fit, with_channels
from workers.data.boxes import fit_boxes
from workers.data.rows import LARGEST_SIDE, MAX_IMAGES, SMALLEST_SIDE, Options, Report, Row, Size

CHUNK_BYTES = 16 << 20
MAX_SIZE_SURVEY = 500
"""Images that are read beyond the first of another size, to list the sizes in the error."""
NOTICEABLE = 0.02
"""Relative difference of proportions above which an image counts as cropped."""


class Column:
    """A file of uint8 rows of one shape: `append` writes a row, `array` maps all into memory."""

    def __init__(self, path: Path):
        self.path, self.count, self.shape = path, 0, ()
        self.file = path.open("wb", buffering=1 << 20)

    def append(self, row: np.ndarray) -> None:
        self.shape = row.shape
        self.file.write(np.ascontiguousarray(row).data)
        self.count += 1

    def array(self) -> np.ndarray:
        self.file.flush()
        return np.memmap(self.path, np.uint8, "r", shape=(self.count, *self.shape))

    def widen(self) -> None:
        """Rewrites the rows with three channels instead of one, when a colour image follows gray ones."""
        gray, narrow = self.array(), self.path.with_suffix(".gray")
        self.file.close()
        self.path.rename(narrow)
        self.file = self.path.open("wb", buffering=1 << 20)
        for chunk in chunks(gray):
            self.file.write(np.ascontiguousarray(with_channels(chunk, 3)).data)
        self.shape = (3, *self.shape[1:])
        narrow.unlink()

    def close(self) -> None:
        self.file.close()
        self.path.unlink(missing_ok=True)


def chunk_rows(array: np.ndarray) -> int:
    return max(1, CHUNK_BYTES // max(1, array[:1].nbytes))


def chunks(array: np.ndarray) -> Iterator[np.ndarray]:
    step = chunk_rows(array)
    return (array[start : start + step] for start in range(0, len(array), step))


class Record(NamedTuple):
    """A row without its pixels; `columns` are its image columns, `index` is its place in them."""

    columns: tuple[str, ...]
    index: int
    values: dict[str, str | int | float]
    split: str | None
    group: str | None
    boxes: list | None = None


class Table:
    """Collects the rows of an import: `add` them, then read `records`, `columns` and `masks`."""

    def __init__(self, folder: Path, options: Options, classes: list[str] | None, report: Report):
        self.folder, self.options, self.report = folder, options, report
        self.classes = classes
        self.columns: dict[str, Column] = {}
        self.masks: Column | None = None
        self.mask_values = np.zeros(256, bool)
        self.records: list[Record] = []
        self.sizes: Counter[Size] = Counter()
        self.channels = options.channels
        self.cropped = self.bytes = self.lost_boxes = 0

    @property
    def size(self) -> Size:
        return self.options.size or next(iter(self.sizes))

    def add(self, row: Row) -> None:
        if len(self.records) >= MAX_IMAGES:
            raise InvalidDataset(
                f"The dataset has more than {MAX_IMAGES} images, which is the limit.", remedy="Send fewer."
            )
        pictures = [*row.images.values(), *([] if row.mask is None else [row.mask])]
        size = Size(*pictures[0].shape[-2:])
        if any(picture.shape[-2:] != size for picture in pictures):
            self.report.refuse(row.name, "The two images of the pair differ in size.")
            return
        self.sizes[size] += 1
        if not self.options.size and (len(self.sizes) > 1 or not size.usable):
            if self.sizes.total() > len(self.records) + MAX_SIZE_SURVEY:
                self.check_sizes()
            return
        if row.mask is None or self._add_mask(row):
            self._add_images(row)

    def check_sizes(self) -> None:
        """Raises InvalidDataset unless all images have the same usable size or are scaled to `image_size`."""
        if self.options.size or not self.sizes or (len(self.sizes) == 1 and self.size.usable):
            return
        sizes = ", ".join(f"{size} ({count} images)" for size, count in self.sizes.most_common(8))
        more = f" and {len(self.sizes) - 8} more sizes" if len(self.sizes) > 8 else ""
        raise self.report.invalid(
            f"All images must have the same size, with sides of {SMALLEST_SIDE} to {LARGEST_SIDE} pixels. "
            f"Found (height x width): {sizes}{more}.",
            field="image_size",
            remedy="Set image_size to scale them, for example image_size=64 or image_size=48x64 (height x width).",
        )

    def _add_images(self, row: Row) -> None:
        height, width = self.size
        first = next(iter(row.images.values()))
        self.cropped += abs(first.shape[-2] * width / (first.shape[-1] * height) - 1) > NOTICEABLE
        for name, image in row.images.items():
            self._append(name, self._same_channels(fit(image, height, width)))
        index = self.columns[next(iter(row.images))].count - 1
        boxes = None if row.boxes is None else fit_boxes(row.boxes, Size(*first.shape[-2:]), self.size)
        self.lost_boxes += len(row.boxes or ()) - len(boxes or ())
        self.records.append(Record(tuple(row.images), index, row.values, row.split, row.group, boxes))

    def _same_channels(self, image: np.ndarray) -> np.ndarray:
        if self.channels is None:
            self.channels = len(image)
        if not self.options.channels and len(image) > self.channels:
            self.channels = 3
            for column in self.columns.values():
                column.widen()
        return with_channels(image, self.channels)

    def _append(self, name: str, image: np.ndarray) -> None:
        self.bytes += image.nbytes
        if self.bytes > settings().max_archive_bytes:
            raise InvalidDataset(
                f"The images take more than {settings().max_archive_bytes} bytes at {self.size}, which is the limit.",
                remedy="Import with a smaller image_size.",
            )
        if name not in self.columns:
            self.columns[name] = Column(self.folder / f"{name}.raw")
        self.columns[name].append(image)

    def _add_mask(self, row: Row) -> bool:
        values = np.bincount(row.mask.ravel(), minlength=256) > 0
        if self.classes and len(self.classes) == 2 and np.flatnonzero(values).tolist() in ([255], [0, 255]):
            row.mask = row.mask // 255
            values = np.bincount(row.mask.ravel(), minlength=256) > 0
        if self.classes and values[len(self.classes) :].any():
            highest = int(np.flatnonzero(values)[-1])
            self.report.refuse(
                row.name,
                f"The mask has the class {highest}; classes.json names {len(self.classes)} classes, 0 to "
                f"{len(self.classes) - 1}.",
            )
            return False
        self.mask_values |= values
        if self.masks is None:
            self.masks = Column(self.folder / "masks.raw")
        self.masks.append(fit(row.mask, *self.size, nearest=True))
        return True

    def close(self) -> None:
        for column in [*self.columns.values(), *([self.masks] if self.masks else [])]:
            column.close()
