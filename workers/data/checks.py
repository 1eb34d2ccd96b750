"""Checks of the finished arrays: image hashes for the split, warnings about images, classes, ages and identities."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from workers.data.boxes import MIN_VISIBLE
from workers.data.rows import Report
from workers.data.table import Table, chunks

RECOMMENDED_IMAGES = 20
IMBALANCE = 10
"""Warns when the largest class has more than this many times the images of the smallest."""
MAX_QUANTILES = 201


@dataclass
class ColumnStats:
    """Statistics of an image column. `keys`: the hash of each image in order; `constant`: images of a single colour."""

    keys: list[bytes] = field(default_factory=list)
    constant: int = 0
    highest: int = 0
    colourless: bool = True


def column_stats(array: np.ndarray, tick: Callable[[], None]) -> ColumnStats:
    """The statistics of images (N, C, H, W); `tick` is called between chunks and may raise to stop."""
    stats = ColumnStats()
    for chunk in chunks(array):
        tick()
        flat = np.ascontiguousarray(chunk).reshape(len(chunk), -1)
        stats.keys += [hashlib.sha256(row.data).digest()[:16] for row in flat]
        highest = flat.max(axis=1)
        stats.constant += int((highest == flat.min(axis=1)).sum())
        stats.highest = max(stats.highest, int(highest.max()))
        stats.colourless = stats.colourless and bool((chunk == chunk[:, :1]).all())
    return stats


SIDES = {"paired": ("input", "target"), "unpaired": ("a", "b")}


def check_sides(layout: str, stats: dict[str, ColumnStats], report: Report) -> None:
    """Raises InvalidDataset if a side of a translation dataset is empty or both sides hold the same images."""
    if layout not in SIDES:
        return
    first, second = SIDES[layout]
    for name in (first, second):
        if name not in stats:
            raise report.invalid(f"{name} is empty, or none of its images is usable.", field="layout")
    one, other = stats[first].keys, stats[second].keys
    if one == other if layout == "paired" else set(one) == set(other):
        raise report.invalid(
            f"{first} and {second} hold the same images, so there is nothing to translate.",
            field="layout",
            remedy="Send different images for the two sides.",
        )
    if layout == "unpaired" and (both := set(one) & set(other)):
        report.warn(f"{len(both)} images are in both domains.")


def warn_about_images(table: Table, stats: dict[str, ColumnStats], sides: list[str | None], report: Report) -> None:
    """Warns about few, cropped, constant, dark, gray or repeated images, lost boxes and what the split left out."""
    count, columns = len(table.records), list(stats.values())
    if count < RECOMMENDED_IMAGES:
        report.warn(f"The dataset has {count} images; at least {RECOMMENDED_IMAGES} are recommended.")
    if table.cropped:
        report.warn(f"{table.cropped} images had other proportions than {table.size} and were cropped to their centre.")
    if table.lost_boxes:
        report.warn(f"{table.lost_boxes} boxes were removed because cropping left less than {MIN_VISIBLE:.0%} of them.")
    if constant := sum(column.constant for column in columns):
        report.warn(f"{constant} images have a single colour.")
    if all(column.highest <= 1 for column in columns):
        report.warn("No pixel is brighter than 1 of 255: the images were probably not scaled to 0 to 255.")
    if table.channels == 3 and all(column.colourless for column in columns):
        report.warn("All images are gray but stored in colour: training is faster after an import with channels=1.")
    repeated = sum(len(column.keys) - len(set(column.keys)) for column in columns)
    if repeated:
        report.warn(f"{repeated} images are exact copies of others; copies stay on one side of the split.")
    if left_out := sides.count(None):
        report.warn(f"{left_out} validation images were removed because they are also training images.")
    if "validation" not in sides:
        report.warn("The dataset has too few different images for a validation split.")


def warn_about_classes(labels: list[int], keys: list[bytes], classes: list[str], report: Report) -> None:
    """Warns about empty and unbalanced classes, and about images under several classes."""
    counts = Counter(labels)
    if empty := [name for index, name in enumerate(classes) if not counts[index]]:
        report.warn(f"{len(empty)} classes have no image, for example {empty[0]!r}.")
    (largest, most), *_, (smallest, fewest) = counts.most_common()
    if most > IMBALANCE * fewest:
        report.warn(f"The class {classes[largest]!r} has {most} images and the class {classes[smallest]!r} {fewest}.")
    labels_of = defaultdict(set)
    for key, label in zip(keys, labels, strict=True):
        labels_of[key].add(label)
    if ambiguous := sum(len(several) > 1 for several in labels_of.values()):
        report.warn(f"{ambiguous} images occur under more than one class.")


def age_and_identity_facts(values: dict[str, np.ndarray], train: list[int], report: Report) -> dict[str, Any]:
    """`ages`: up to 201 evenly spaced quantiles, and `identities`: how many there are, of the training rows.

    Warns where nothing can be learned from them: a single age, a single identity, or one image per identity.
    """
    facts: dict[str, Any] = {}
    if "ages" in values and train:
        ages = np.sort(values["ages"][train])
        facts["ages"] = ages[np.linspace(0, len(ages) - 1, min(MAX_QUANTILES, len(ages))).round().astype(int)].tolist()
        if ages[0] == ages[-1]:
            report.warn(f"All images have the age {ages[0]:g}; at least two ages are needed to learn ageing.")
    if "identities" in values and train:
        counts = Counter(values["identities"][train].tolist())
        facts["identities"] = len(counts)
        if len(counts) == 1:
            report.warn("All images have the same identity; at least two are needed to learn to tell people apart.")
        elif max(counts.values()) == 1:
            report.warn(
                "Every image has its own identity; several images per identity are needed to learn what a person keeps."
            )
    return facts
