"""A look at the finished arrays: hashes for the split, and what the person who uploaded them would want to know."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from workers.data.rows import Report
from workers.data.table import Table, chunks

FEW = 20
IMBALANCE = 10
PLACES = 201


@dataclass
class Findings:
    """Of one image column. `keys` are the images' hashes in order."""

    keys: list[bytes] = field(default_factory=list)
    constant: int = 0
    highest: int = 0
    colourless: bool = True


def examine(array: np.ndarray, tick: Callable[[], None]) -> Findings:
    found = Findings()
    for chunk in chunks(array):
        tick()
        flat = np.ascontiguousarray(chunk).reshape(len(chunk), -1)
        found.keys += [hashlib.sha256(row.data).digest()[:16] for row in flat]
        highest = flat.max(axis=1)
        found.constant += int((highest == flat.min(axis=1)).sum())
        found.highest = max(found.highest, int(highest.max()))
        found.colourless = found.colourless and bool((chunk == chunk[:, :1]).all())
    return found


SIDES = {"paired": ("input", "target"), "unpaired": ("a", "b")}


def check_sides(layout: str, findings: dict[str, Findings], report: Report) -> None:
    """Raises InvalidDataset where there is nothing to translate: an empty side, or the same pictures on both."""
    if layout not in SIDES:
        return
    first, second = SIDES[layout]
    for name in (first, second):
        if name not in findings:
            raise report.invalid(f"{name} is empty, or none of its images could be used.", field="layout")
    one, other = findings[first].keys, findings[second].keys
    if one == other if layout == "paired" else set(one) == set(other):
        raise report.invalid(
            f"{first} and {second} hold the same pictures; there is nothing to translate.",
            field="layout",
            remedy="Put two kinds of pictures into the two folders.",
        )
    if layout == "unpaired" and (both := set(one) & set(other)):
        report.warn(f"{len(both)} pictures are in both domains.")


def advise(table: Table, findings: dict[str, Findings], sides: list[str | None], report: Report) -> None:
    count, found = len(table.records), list(findings.values())
    if count < FEW:
        report.warn(f"{count} images are few to learn from.")
    if table.cropped:
        report.warn(f"{table.cropped} images had other proportions than {table.size} and were cropped in the middle.")
    if table.lost_boxes:
        report.warn(f"{table.lost_boxes} boxes were left out because cropping left little of what they show.")
    if constant := sum(each.constant for each in found):
        report.warn(f"{constant} images are of a single colour.")
    if all(each.highest <= 1 for each in found):
        report.warn("No pixel is brighter than 1 of 255: the images were probably not scaled to 0..255.")
    if table.channels == 3 and all(each.colourless for each in found):
        report.warn("All images are gray but stored in colour: channels=1 trains faster.")
    repeated = sum(len(each.keys) - len(set(each.keys)) for each in found)
    if repeated:
        report.warn(f"{repeated} images are exact copies of others; copies are kept on one side of the split.")
    if left_out := sides.count(None):
        report.warn(f"{left_out} validation images were left out because they are also among the training images.")
    if "validation" not in sides:
        report.warn("There are too few different images for a validation split.")


def advise_on_classes(labels: list[int], keys: list[bytes], classes: list[str], report: Report) -> None:
    counts = Counter(labels)
    if empty := [name for index, name in enumerate(classes) if not counts[index]]:
        report.warn(f"{len(empty)} classes have no image, {empty[0]!r} for example.")
    (largest, most), *_, (smallest, fewest) = counts.most_common()
    if most > IMBALANCE * fewest:
        report.warn(f"The class {classes[largest]!r} has {most} images and the class {classes[smallest]!r} {fewest}.")
    names = defaultdict(set)
    for key, label in zip(keys, labels, strict=True):
        names[key].add(label)
    if double := sum(len(labels) > 1 for labels in names.values()):
        report.warn(f"{double} images occur under more than one class.")


def facts_of_people(values: dict[str, np.ndarray], train: list[int], report: Report) -> dict[str, Any]:
    """`ages` at evenly spaced places from the youngest to the oldest, and the count of `identities`, of training rows.

    What would teach nothing is in the report: a single age, one person, as many people as images.
    """
    facts: dict[str, Any] = {}
    if "ages" in values and train:
        ages = np.sort(values["ages"][train])
        facts["ages"] = ages[np.linspace(0, len(ages) - 1, min(PLACES, len(ages))).round().astype(int)].tolist()
        if ages[0] == ages[-1]:
            report.warn(f"All images are of the age {ages[0]:g}: no model can learn from them what age changes.")
    if "identities" in values and train:
        counts = Counter(values["identities"][train].tolist())
        facts["identities"] = len(counts)
        if len(counts) == 1:
            report.warn("All images have one identity, so nothing says what tells two people apart.")
        elif max(counts.values()) == 1:
            report.warn("Every image has an identity of its own, so nothing says what one person keeps.")
    return facts
