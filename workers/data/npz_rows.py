"""Reads an npz as rows: finds the column and split of each array, and the layout."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from app.core.catalog.builtins import COLUMNS
from app.core.errors import InvalidDataset, InvalidImage
from workers.data import pixel_values
from workers.data.archive import Archive
from workers.data.boxes import MAX_BOXES, check, read_array
from workers.data.layouts import SPLITS
from workers.data.npz import Array, read_arrays
from workers.data.rows import IMAGE_COLUMNS, VALUE_TYPES, Options, Report, Row
from workers.data.values import name_classes, read_values

NAMES = {name: name for name in (*IMAGE_COLUMNS, *VALUE_TYPES, "masks", "boxes")} | {"x": "images", "y": "labels"}
DOMAIN_LABELS = {"a_labels": "a", "b_labels": "b"}
CLASS_NAMES = ("classes", "class_names", "label_names")
REMEDY = "Save with numpy.savez(file, images=..., labels=...)."

Part = dict[str, Array]


class NpzSource:
    """A Source (see rows.py)."""

    twins = False

    def __init__(self, file: Path, options: Options, report: Report):
        self.archive, self.report = Archive(file, report), report
        self.boxes: dict[str | None, list] = {}
        self.classes: list[str] | None = None
        self.parts: dict[str | None, Part] = {}
        for array in read_arrays(self.archive):
            split, column = _parse(array.name)
            if array.name in DOMAIN_LABELS:
                self.parts.setdefault(None, {})[array.name] = array
                continue
            if array.name in CLASS_NAMES:
                self.classes = [str(name) for name in read_values(array, "labels")]
            elif column is None:
                report.warn(f"The array {array.name} was not used.")
            else:
                self.parts.setdefault(split, {})[column] = array
        self.layout = options.layout or _detect(self._names())
        self.columns = self._columns()
        self.total = sum(part[name].shape[0] for part in self.parts.values() for name in self.columns[:1])
        if self.layout == "unpaired":
            self.total += sum(part["b"].shape[0] for part in self.parts.values())
        self._read_values()

    def close(self) -> None:
        self.archive.close()

    def rows(self) -> Iterator[Row]:
        names = tuple(name for name in self.columns if name in IMAGE_COLUMNS)
        for split in self.parts:
            for group in [(name,) for name in names] if self.layout == "unpaired" else [names]:
                yield from self._rows(split, group)

    def _rows(self, split: str | None, names: tuple[str, ...]) -> Iterator[Row]:
        part, values, boxes = self.parts[split], self.values[split], self.boxes.get(split)
        if self.layout == "unpaired":
            values = self.domain_values.get(names[0], {})
        streams = [pixel_values.pixels(part[name]) for name in names]
        masks = pixel_values.masks(part["masks"]) if "masks" in self.columns else None
        for index, images in enumerate(zip(*streams, strict=True)):
            row = Row(
                f"{part[names[0]].name}[{index}]",
                dict(zip(names, images, strict=True)),
                next(masks) if masks else None,
                {name: column[index] for name, column in values.items()},
                split,
                boxes=boxes and boxes[index],
            )
            yield row if boxes is None else self._with_boxes(row, f"{part['boxes'].name}[{index}]")

    def _with_boxes(self, row: Row, where: str) -> Row | None:
        """The row; None for an image with an invalid box, which is refused in the report."""
        for index, box in enumerate(row.boxes):
            try:
                check(box, *row.images["images"].shape[1:])
            except InvalidImage as error:
                self.report.refuse(f"{where}[{index}]", error.detail)
                return None
        return row

    def _names(self) -> set[str]:
        return {name for part in self.parts.values() for name in part}

    def _columns(self) -> tuple[str, ...]:
        columns = COLUMNS[self.layout]
        if self.layout == "attributes":
            columns += tuple(name for name in VALUE_TYPES if name in self._names())
        for split, part in self.parts.items():
            for name in columns:
                if name not in part:
                    where = f" for {split}" if split else ""
                    raise InvalidDataset(
                        f"layout={self.layout} needs the arrays {' and '.join(columns)}; there is no {name}{where}.",
                        field="layout",
                        remedy=REMEDY,
                    )
        if columns == ("images",) and self.layout == "attributes":
            raise InvalidDataset(
                "layout=attributes needs at least one of the arrays labels, targets, ages and identities.",
                field="layout",
            )
        return columns

    def _read_values(self) -> None:
        self.values: dict[str | None, dict[str, list]] = {}
        names_by_index = self.classes
        for split, part in self.parts.items():
            lengths = {part[name].name: part[name].shape[0] for name in self.columns}
            if self.layout != "unpaired" and len(set(lengths.values())) > 1:
                text = ", ".join(f"{name} {length}" for name, length in lengths.items())
                raise InvalidDataset(f"The arrays differ in length: {text}.")
            names = [name for name in self.columns if name in VALUE_TYPES]
            self.values[split] = {name: read_values(part[name], name) for name in names}
            if "boxes" in self.columns:
                if part["boxes"].shape[1:2] > (MAX_BOXES,):
                    raise InvalidDataset(
                        f"The array {part['boxes'].name} has more than {MAX_BOXES} boxes per image; its shape is"
                        f" {list(part['boxes'].shape)}."
                    )
                self.boxes[split], classes = read_array(part["boxes"], names_by_index)
                self.classes = max(self.classes or classes, classes, key=len)
        self.domain_values = self._read_domains()
        self._warn_about_unused()
        if "labels" in self.columns:
            labels = chain.from_iterable(values["labels"] for values in self.values.values())
            self.classes = name_classes(list(labels), self.classes)

    def _read_domains(self) -> dict[str, dict[str, list]]:
        """The labels of a and of b, as far as there are some, if the arrays state no split."""
        part = self.parts.get(None, {})
        if self.layout != "unpaired" or "a" not in part or "b" not in part:
            return {}
        labels = {domain: read_values(part[name], "labels") for name, domain in DOMAIN_LABELS.items() if name in part}
        for domain, of_domain in labels.items():
            if len(of_domain) != part[domain].shape[0]:
                raise InvalidDataset(
                    f"The arrays differ in length: {domain} {part[domain].shape[0]}, {domain}_labels {len(of_domain)}."
                )
        if labels:
            self.classes = name_classes([*chain.from_iterable(labels.values())], self.classes)
        return {domain: {"labels": of_domain} for domain, of_domain in labels.items()}

    def _warn_about_unused(self) -> None:
        """Warns about arrays with known names that the layout does not read."""
        used = {*self.columns, *(f"{domain}_labels" for domain in self.domain_values)}
        for part in self.parts.values():
            for name in sorted(part.keys() - used):
                self.report.warn(f"The array {part[name].name} was not used: layout={self.layout} does not read it.")


def _detect(names: set[str]) -> str:
    if not names:
        raise InvalidDataset(
            "The npz has no array with a known name: images, labels, targets, ages, identities, masks, boxes, input, "
            "target, a, b; or x_train, y_train, train_images, train_labels and the like.",
            remedy=REMEDY,
        )
    for layout in ("unpaired", "paired"):
        if set(COLUMNS[layout]) <= names:
            return layout
    if "masks" in names and names & VALUE_TYPES.keys():
        raise InvalidDataset(
            "The npz has both masks and labels.", field="layout", remedy="Set layout=segmentation or layout=labelled."
        )
    if "masks" in names:
        return "segmentation"
    if "boxes" in names:
        return "detection"
    if names & VALUE_TYPES.keys() - {"labels"}:
        return "attributes"
    return "labelled" if "labels" in names else "plain"


def _parse(name: str) -> tuple[str | None, str | None]:
    """(split, column) of names such as images, x_train (Keras) and train_images (MedMNIST); None if unknown."""
    words = name.lower().split("_")
    if len(words) == 1:
        return None, NAMES.get(words[0])
    for split, column in (words, words[::-1]) if len(words) == 2 else ():
        if split in SPLITS and column in NAMES:
            return SPLITS[split], NAMES[column]
    return None, None
