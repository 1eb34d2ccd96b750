"""An npz as rows: which array is which column, of which split, in which layout."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from app.core.catalog.builtin_datasets import COLUMNS
from app.core.errors import InvalidDataset, InvalidImage
from workers.data import pixel_values as levels
from workers.data.archive import Archive
from workers.data.boxes import MOST, check, read_array
from workers.data.layouts import SPLITS
from workers.data.npz import Array, read_arrays
from workers.data.rows import IMAGE_COLUMNS, VALUE_TYPES, Options, Report, Row
from workers.data.values import name_classes, read_values

NAMES = {name: name for name in (*IMAGE_COLUMNS, *VALUE_TYPES, "masks", "boxes")} | {"x": "images", "y": "labels"}
OF_DOMAINS = {"a_labels": "a", "b_labels": "b"}
CLASS_NAMES = ("classes", "class_names", "label_names")
REMEDY = "Save with numpy.savez(file, images=..., labels=...)."

Part = dict[str, Array]


class NpzSource:
    """Like ZipSource: `total`, `layout`, `classes` and `rows()`."""

    twins = False

    def __init__(self, file: Path, options: Options, report: Report):
        self.archive, self.report = Archive(file, report), report
        self.boxes: dict[str | None, list] = {}
        self.classes: list[str] | None = None
        self.parts: dict[str | None, Part] = {}
        for array in read_arrays(self.archive):
            split, column = _parse(array.name)
            if array.name in OF_DOMAINS:
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
        streams = [levels.pixels(part[name]) for name in names]
        masks = levels.masks(part["masks"]) if "masks" in self.columns else None
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
        """None, and the reason in the report, for an image with a box that cannot be."""
        for place, box in enumerate(row.boxes):
            try:
                check(box, *row.images["images"].shape[1:])
            except InvalidImage as error:
                self.report.refuse(f"{where}[{place}]", error.detail)
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
                        f"The layout {self.layout} has the arrays {' and '.join(columns)}; there is no {name}{where}.",
                        field="layout",
                        remedy=REMEDY,
                    )
        if columns == ("images",) and self.layout == "attributes":
            raise InvalidDataset("The layout attributes has one of the arrays labels, targets, ages and identities.")
        return columns

    def _read_values(self) -> None:
        self.values: dict[str | None, dict[str, list]] = {}
        given = self.classes
        for split, part in self.parts.items():
            lengths = {part[name].name: part[name].shape[0] for name in self.columns}
            if self.layout != "unpaired" and len(set(lengths.values())) > 1:
                stated = ", ".join(f"{name} {length}" for name, length in lengths.items())
                raise InvalidDataset(f"The arrays differ in length: {stated}.")
            names = [name for name in self.columns if name in VALUE_TYPES]
            self.values[split] = {name: read_values(part[name], name) for name in names}
            if "boxes" in self.columns:
                if part["boxes"].shape[1:2] > (MOST,):
                    raise InvalidDataset(f"The array {part['boxes'].name} has more than {MOST} boxes for an image.")
                self.boxes[split], kinds = read_array(part["boxes"], given)
                self.classes = max(self.classes or kinds, kinds, key=len)
        self.domain_values = self._read_domains()
        if "labels" in self.columns:
            labels = chain.from_iterable(values["labels"] for values in self.values.values())
            self.classes = name_classes(list(labels), self.classes)

    def _read_domains(self) -> dict[str, dict[str, list]]:
        """Labels by domain, where both have them and no split is given."""
        part = self.parts.get(None, {})
        if self.layout != "unpaired" or not set(OF_DOMAINS) <= set(part):
            return {}
        found = {domain: read_values(part[name], "labels") for name, domain in OF_DOMAINS.items()}
        for name, domain in OF_DOMAINS.items():
            if len(found[domain]) != part[domain].shape[0]:
                raise InvalidDataset(
                    f"The arrays differ in length: {domain} {part[domain].shape[0]}, {name} {len(found[domain])}."
                )
        self.classes = name_classes([*found["a"], *found["b"]], self.classes)
        return {domain: {"labels": labels} for domain, labels in found.items()}


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
            "The npz has masks and labels.", field="layout", remedy="Say layout=segmentation or another."
        )
    if "masks" in names:
        return "segmentation"
    if "boxes" in names:
        return "detection"
    if names & VALUE_TYPES.keys() - {"labels"}:
        return "attributes"
    return "labelled" if "labels" in names else "plain"


def _parse(name: str) -> tuple[str | None, str | None]:
    """(split, column) of names such as images, x_train (Keras) and train_images (MedMNIST); column None: unknown."""
    words = name.lower().split("_")
    if len(words) == 1:
        return None, NAMES.get(words[0])
    for split, column in (words, words[::-1]) if len(words) == 2 else ():
        if split in SPLITS and column in NAMES:
            return SPLITS[split], NAMES[column]
    return None, None
