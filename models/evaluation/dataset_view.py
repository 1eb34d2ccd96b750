"""A dataset beside a model: which of its images an operation looks at, and what the model makes of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models.capabilities import Encodes
from models.data import Columns
from models.family import Family
from models.types import DataError, DataSpec, InputError

CHUNK = 256
Split = Literal["all", "train", "validation"]
Cache = Callable[[str, int, Callable[[], Tensor]], Tensor]
"""(name, numbers that go through the network, how to compute) -> rows, computed now or known from before."""


def uncached(name: str, numbers: int, compute: Callable[[], Tensor]) -> Tensor:
    """Keeps nothing."""
    return compute()


@dataclass(frozen=True)
class Selection:
    """Some images: `positions` (n,) count through all of them, the training images first."""

    split: str
    positions: Tensor

    def __len__(self) -> int:
        return len(self.positions)


class DatasetView:
    """`classes` are those of the dataset, which need not be the model's.

    Raises DataError for a dataset without images, or with images of another size than the model's.
    """

    def __init__(
        self, model: Family, name: str, data: DataSpec, sides: Mapping[str, Columns], cache: Cache = uncached,
        tick: Callable[[], None] = lambda: None,
    ):  # fmt: skip
        self.model, self.name, self.data, self.cache, self.tick = model, name, data, cache, tick
        self.sides = {split: columns for split, columns in sides.items() if "images" in columns and len(columns)}
        if not self.sides:
            raise DataError(f"the dataset {name} has no column images to look at", "dataset")
        check_shape(model, data)

    def pick(self, split: Split = "all", most: int | None = None) -> Selection:
        """All images of a split, or `most` of them evenly spaced. Raises InputError for a split without images."""
        counts = {side: len(columns) for side, columns in self.sides.items()}
        if split != "all" and split not in counts:
            raise InputError(f"the dataset {self.name} has no {split} images", "split", "ask for split=all")
        start = counts["train"] if split == "validation" and "train" in counts else 0
        total = sum(counts.values()) if split == "all" else counts[split]
        if most is None or most >= total:
            return Selection(split, torch.arange(start, start + total))
        return Selection(split, start + torch.linspace(0, total - 1, most, dtype=torch.float64).long())

    def position(self, split: str, index: int) -> int:
        """Where row `index` of a split stands among all. Raises InputError when there is no such row."""
        count = len(self.sides.get(split, ()))
        if not 0 <= index < count:
            raise InputError(f"the dataset {self.name} has {count} {split} images, counted from 0", "index")
        return index + (len(self.sides["train"]) if split == "validation" and "train" in self.sides else 0)

    def places(self, positions: Tensor) -> list[dict]:
        """The split, index and, where there are labels, label of each position."""
        found, labels = [], self.labels(positions)
        for row, position in enumerate(positions.tolist()):
            split, index = self._place(position)
            found.append({"split": split, "index": index} | ({} if labels is None else self._label(int(labels[row]))))
        return found

    def images(self, positions: Tensor) -> Tensor:
        """(n, c, h, w) in [0, 1], on the CPU."""
        return self.column("images", positions)

    def labels(self, positions: Tensor) -> Tensor | None:
        """(n,) class indices; None for a dataset without labels."""
        labelled = all("labels" in columns for columns in self.sides.values())
        return self.column("labels", positions) if labelled else None

    def column(self, name: str, positions: Tensor) -> Tensor:
        """Rows of one column, in the order of `positions`."""
        found, start = None, 0
        for columns in self.sides.values():
            inside = (positions >= start) & (positions < start + len(columns))
            rows = columns.rows(positions[inside] - start, [name])[name].cpu()
            found = rows.new_empty(len(positions), *rows.shape[1:]) if found is None else found
            found[inside] = rows
            start += len(columns)
        return found

    def codes(self, selection: Selection) -> Tensor:
        """(n, latent_dim) codes, on the CPU. Raises InputError when the model does not encode."""
        if not isinstance(self.model, Encodes):
            raise InputError(f"a model of family {self.model.name} does not encode images", "dataset")
        return self.measure("codes", selection, self.model.encode)

    def measure(self, name: str, selection: Selection, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Rows that `function`, known by `name`, gives for the images, on the CPU."""

        def compute() -> Tensor:
            parts = []
            with torch.no_grad():
                for part in selection.positions.split(CHUNK):
                    self.tick()
                    parts.append(function(self.images(part).to(self.model.device)).cpu())
            found = torch.cat(parts)
            if not torch.isfinite(found).all():
                raise DataError(f"the model gives numbers that are not finite for images of {self.name}", "dataset")
            return found

        return self.cache(f"{name}-{selection.split}-{len(selection)}", len(selection) * self.data.pixels, compute)

    def _place(self, position: int) -> tuple[str, int]:
        first = len(self.sides.get("train", ()))
        return ("train", position) if position < first else ("validation", position - first)

    def _label(self, index: int) -> dict:
        return {"label": self.data.classes[index] if self.data.classes else str(index), "class": index}


def check_shape(model: Family, data: DataSpec) -> None:
    """Raises DataError when the dataset's images have another size than the model's."""
    if data.shape == model.data.shape:
        return
    given, wanted = ("x".join(map(str, shape)) for shape in (data.shape, model.data.shape))
    raise DataError(
        f"the dataset's images are {given} (channels, height, width), the model's {wanted}",
        "dataset",
        f"import the dataset again with image_size={model.data.height}x{model.data.width}"
        f"&channels={model.data.channels}",
    )
