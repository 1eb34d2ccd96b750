"""Reads a zip of images as rows, for every layout, one decoded image at a time."""

import json
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from posixpath import splitext

import numpy as np

from app.core.errors import InvalidDataset, InvalidImage
from app.core.images import cost_of
from app.core.settings import settings
from workers import codecs
from workers.data.archive import Archive, Member
from workers.data.attributes import MAX_BYTES, Attributes, read_groups, read_labels
from workers.data.boxes import MAX_BOXES, Objects, check, read_boxes
from workers.data.layouts import ROLES, TABLES, Arrangement, Place, arrange
from workers.data.rows import Options, Report, Row, printable

# Pillow decodes without the interpreter lock; below this size per image, threads cost more than they save.
POOL_FROM_BYTES = 16 << 10
LOOK_AHEAD = 4
MAX_PIXELS = 50_000_000_000
"""Cost of decoding all images of an archive, in pixels (app/core/images.py): a quarter of an hour."""


def _comparable(file: str) -> str:
    """The name of a file without what tables often leave out: its suffix, and the case of letters."""
    return splitext(file)[0].casefold()


class ZipSource:
    """A Source (see rows.py)."""

    def __init__(self, file: Path, options: Options, report: Report):
        self.report = report
        self.pixels = 0
        self.archive = Archive(file, report, options.names)
        self.arrangement: Arrangement = arrange(self.archive.members, options.layout, report)
        self.layout = self.arrangement.layout
        self.total = len(self.arrangement.places)
        # large photos may be decoded smaller; images of a pair keep their size until they have been compared
        scaled = options.size and self.layout not in ("paired", "segmentation", "detection")
        self.least_side = 2 * max(options.size) if scaled else None
        self.classes = self._class_names() if self.layout == "segmentation" else None
        self.groups = self._groups()

    @property
    def twins(self) -> bool:
        """True if the validation images of both domains have the same names and none was refused."""
        sides: dict[str, list[str]] = {"a": [], "b": []}
        for place in self.arrangement.places if self.layout == "unpaired" else ():
            if place.split == "validation":
                sides[place.role].append(place.key)
        return bool(sides["a"]) and sides["a"] == sides["b"] and not self.report.refused_count

    def close(self) -> None:
        self.archive.close()

    def rows(self) -> Iterator[Row | None]:
        for row in self._rows():
            if row is not None:
                row.group = self.groups.get(row.name)
            yield row

    def _rows(self) -> Iterator[Row | None]:
        if self.layout == "attributes":
            return self._attributes()
        if self.layout == "detection":
            return self._objects()
        if self.layout in ("paired", "segmentation"):
            return self._pairs(*ROLES[self.layout])
        return self._single(self.arrangement.places)

    def _single(self, places: Iterable[Place]) -> Iterator[Row | None]:
        for place, image in self._decoded(places):
            values = {} if place.label is None else {"labels": place.label}
            yield image if image is None else Row(place.member.name, {place.role: image}, None, values, place.split)

    def _attributes(self) -> Iterator[Row | None]:
        sidecar = self.arrangement.sidecars.get("labels.csv")
        if sidecar is None:
            raise InvalidDataset("layout=attributes needs labels.csv at the top level; there is none.", field="layout")
        lines = read_labels(self._sidecar(sidecar, MAX_BYTES), self.report)
        attributes: dict[Place, Attributes] = {}
        for place in self.arrangement.places:
            # names in the table are relative to the archive or to images/
            line = lines.pop(place.key, None) or lines.pop(place.key.removeprefix("images/"), None)
            if line is not None:
                attributes[place] = line
                continue
            self.report.refuse(place.member.name, "labels.csv has no usable line for this file.")
            yield None
        for name in lines:
            self.report.refuse(name, "labels.csv names this file, but the archive does not have it.")
        for place, image in self._decoded(attributes):
            line = attributes[place]
            yield image if image is None else Row(place.member.name, {"images": image}, None, line.values, line.split)

    def _objects(self) -> Iterator[Row | None]:
        sidecar = self.arrangement.sidecars.get("boxes.csv")
        if sidecar is None:
            raise InvalidDataset("layout=detection needs boxes.csv at the top level; there is none.", field="layout")
        lines = read_boxes(self._sidecar(sidecar, MAX_BYTES), self.report)
        objects: dict[Place, Objects] = {}
        for place in self.arrangement.places:
            # an image without a line shows no object
            line = lines.pop(place.key, None) or lines.pop(place.key.removeprefix("images/"), None)
            objects[place] = line or Objects([], None)
        for name in lines:
            self.report.refuse(name, "boxes.csv names this file, but the archive does not have it.")
        for place, image in self._decoded(objects):
            yield None if image is None else self._with_boxes(place, image, objects[place])

    def _with_boxes(self, place: Place, image: np.ndarray, objects: Objects) -> Row | None:
        """The row; None for an image with an invalid box, which is refused in the report."""
        bad = objects.bad or len(objects.boxes) > MAX_BOXES
        for where, box in objects.boxes:
            try:
                check(box, *image.shape[1:])
            except InvalidImage as error:
                self.report.refuse(where, error.detail)
                bad = True
        if bad:
            count = len(objects.boxes)
            reason = f"The image has {count} boxes; at most {MAX_BOXES} are allowed."
            self.report.refuse(place.member.name, reason if count > MAX_BOXES else "One of its boxes is invalid.")
            return None
        boxes = [box for _, box in objects.boxes]
        return Row(place.member.name, {"images": image}, split=objects.split, boxes=boxes)

    def _pairs(self, first: str, second: str) -> Iterator[Row | None]:
        sides: dict[str, dict[str, Place]] = {first: {}, second: {}}
        for place in self.arrangement.places:
            if place.key in sides[place.role]:
                self.report.refuse(place.member.name, "Another file has the same name with another suffix.")
                yield None
            else:
                sides[place.role][place.key] = place
        for here, there in ((first, second), (second, first)):
            for key in [key for key in sides[here] if key not in sides[there]]:
                self.report.refuse(sides[here][key].member.name, f"{there}/ has no file of the same name.")
                yield None
        both = [key for key in sides[first] if key in sides[second]]
        decoded = self._decoded(chain.from_iterable((sides[first][key], sides[second][key]) for key in both))
        for (place, one), (_, two) in zip(decoded, decoded, strict=True):
            yield None
            yield self._pair(place, one, two, second)

    def _pair(self, place: Place, one: np.ndarray | None, two: np.ndarray | None, second: str) -> Row | None:
        if one is None or two is None:
            return None
        name = place.member.name
        if second == "masks":
            return Row(name, {"images": one}, two, {}, place.split)
        return Row(name, {place.role: one, second: two}, None, {}, place.split)

    def _decoded(self, places: Iterable[Place]) -> Iterator[tuple[Place, np.ndarray | None]]:
        """Each place with its pixels, in order; None for a refused file."""
        large = self.archive.bytes > POOL_FROM_BYTES * self.total
        for place, pixels in (_ahead if large else map)(self._load, places):
            if isinstance(pixels, InvalidImage):
                self.report.refuse(place.member.name, pixels.detail)
                yield place, None
                continue
            yield place, pixels

    def _load(self, place: Place) -> tuple[Place, np.ndarray | InvalidImage]:
        try:
            data = self.archive.read(place.member, settings().max_image_bytes)
            header = codecs.read_header(data)
            self.pixels += cost_of(header, self.least_side)
            if self.pixels > MAX_PIXELS:
                raise InvalidDataset(
                    f"The images count as more than {MAX_PIXELS:,} pixels in total, which is the limit; pixels of 16 "
                    "bits, with transparency or of a progressive JPEG count several times.",
                    remedy="Scale them down, or save them as 8-bit PNG files.",
                )
            if place.role == "masks":
                return place, codecs.decode_mask(data, header=header)
            return place, codecs.decode(data, header=header, least_side=self.least_side)
        except InvalidImage as error:
            return place, error

    def _groups(self) -> dict[str, str]:
        """By the name of a file in the archive, its group in groups.csv or in the table of the layout."""
        groups: dict[str, str] = {}
        for name in (*(table for table, layout in TABLES.items() if layout == self.layout), "groups.csv"):
            if name in self.arrangement.sidecars:
                stated = read_groups(name, self._sidecar(self.arrangement.sidecars[name], MAX_BYTES))
                groups |= {_comparable(file): group for file, group in stated.items()}
        by_name, used = {}, set()
        for place in self.arrangement.places if groups else ():
            for key in (_comparable(f"{place.role}/{place.key}"), _comparable(place.key)):
                if key in groups:
                    by_name[place.member.name], used = groups[key], used | {key}
                    break
        if lost := groups.keys() - used:
            self.report.warn(f"{len(lost)} groups were not used: no file is named {printable(min(lost))}, for example.")
        return by_name

    def _class_names(self) -> list[str] | None:
        sidecar = self.arrangement.sidecars.get("classes.json")
        if sidecar is None:
            return None
        try:
            names = json.loads(self._sidecar(sidecar, 1 << 20))
        except (ValueError, RecursionError):
            names = None
        if isinstance(names, dict):
            names = [names.get(str(index)) for index in range(len(names))]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InvalidDataset(
                'classes.json must be a list of names, or an object such as {"0": "sky", "1": "tree"}.',
                field="classes.json",
            )
        return [printable(name) for name in names]

    def _sidecar(self, member: Member, limit: int) -> bytes:
        try:
            return self.archive.read(member, limit)
        except InvalidImage as error:
            raise InvalidDataset(f"{member.path[-1]} cannot be read. {error.detail}") from error


def _ahead(function, items: Iterable) -> Iterator:
    """Like map(), but up to LOOK_AHEAD items ahead, on two threads."""
    with ThreadPoolExecutor(2) as pool:
        waiting: deque = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= LOOK_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
