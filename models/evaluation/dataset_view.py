"""A dataset as an operation reads it beside the model: selections of images, and what the model computes for them."""

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
"""(name, pixel values that go through the network, how to compute) -> rows, computed now or read from a cache."""


def uncached(name: str, numbers: int, compute: Callable[[], Tensor]) -> Tensor:
    """Computes every time."""
    return compute()


@dataclass(frozen=True)
class Selection:
    """Some images: `positions` (N,) count through the whole dataset, the training images first."""

    split: str
    positions: Tensor

    def __len__(self) -> int:
        return len(self.positions)


class DatasetView:
    """The dataset `name` beside `model`; its classes need not be those of the model.

    `cache` may store measures, `tick` is called before each batch and may raise to stop. Raises DataError for a
    dataset without images, or with images of another size than the model's.
    """

    def __init__(
        self, model: Family, name: str, data: DataSpec, sides: Mapping[str, Columns], cache: Cache = uncached,
        tick: Callable[[], None] = lambda: None,
    ):  # fmt: skip
        self.model, self.name, self.data, self.cache, self.tick = model, name, data, cache, tick
        self.sides = {split: columns for split, columns in sides.items() if "images" in columns and len(columns)}
        if not self.sides:
            raise DataError(f"The dataset {name} has no column images.", "dataset")
        check_shape(model, data)

    def select(self, split: Split = "all", limit: int | None = None) -> Selection:
        """All images of a split, or `limit` of them evenly spaced. Raises InputError for a split without images."""
        counts = {side: len(columns) for side, columns in self.sides.items()}
        if split != "all" and split not in counts:
            raise InputError(f"The dataset {self.name} has no {split} images.", "split", "Use split=all.")
        start = counts["train"] if split == "validation" and "train" in counts else 0
        total = sum(counts.values()) if split == "all" else counts[split]
        if limit is None or limit >= total:
            return Selection(split, torch.arange(start, start + total))
        return Selection(split, start + torch.linspace(0, total - 1, limit, dtype=torch.float64).long())

    def position(self, split: str, index: int) -> int:
        """The position of row `index` of a split in the whole dataset. Raises InputError if there is no such row."""
        count = len(self.sides.get(split, ()))
        if not 0 <= index < count:
            detail = f"The dataset {self.name} has {count} {split} images, with index from 0; you sent {index}."
            raise InputError(detail, "index")
        return index + (len(self.sides["train"]) if split == "validation" and "train" in self.sides else 0)

    def describe(self, positions: Tensor) -> list[dict]:
        """For JSON: the split, index and, if the dataset is labelled, label of each position."""
        items, labels = [], self.labels(positions)
        for row, position in enumerate(positions.tolist()):
            split, index = self._place(position)
            items.append({"split": split, "index": index} | ({} if labels is None else self._label(int(labels[row]))))
        return items

    def images(self, positions: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1], on the CPU."""
        return self.column("images", positions)

    def labels(self, positions: Tensor) -> Tensor | None:
        """(N,) class indices; None for a dataset without labels."""
        labelled = all("labels" in columns for columns in self.sides.values())
        return self.column("labels", positions) if labelled else None

    def column(self, name: str, positions: Tensor) -> Tensor:
        """Rows of one column, in the order of `positions`."""
        values, start = None, 0
        for columns in self.sides.values():
            inside = (positions >= start) & (positions < start + len(columns))
            rows = columns.rows(positions[inside] - start, [name])[name].cpu()
            values = rows.new_empty(len(positions), *rows.shape[1:]) if values is None else values
            values[inside] = rows
            start += len(columns)
        return values

    def codes(self, selection: Selection) -> Tensor:
        """(N, latent_dim) codes, on the CPU. Raises InputError if the model does not encode."""
        if not isinstance(self.model, Encodes):
            raise InputError(f"A model of family {self.model.name} does not encode images.", "dataset")
        return self.measure("codes", selection, self.model.encode)

    def measure(self, name: str, selection: Selection, function: Callable[[Tensor], Tensor]) -> Tensor:
        """`function` of the selected images, in batches, on the CPU; cached under `name`.

        Raises DataError for values that are not finite.
        """

        def compute() -> Tensor:
            parts = []
            with torch.no_grad():
                for part in selection.positions.split(CHUNK):
                    self.tick()
                    parts.append(function(self.images(part).to(self.model.device)).cpu())
            values = torch.cat(parts)
            if not torch.isfinite(values).all():
                raise DataError(f"The model's output for images of {self.name} is not finite.", "dataset")
            return values

        return self.cache(f"{name}-{selection.split}-{len(selection)}", len(selection) * self.data.pixels, compute)

    def _place(self, position: int) -> tuple[str, int]:
        first = len(self.sides.get("train", ()))
        return ("train", position) if position < first else ("validation", position - first)

    def _label(self, index: int) -> dict:
        return {"label": self.data.classes[index] if self.data.classes else str(index), "class": index}


def check_shape(model: Family, data: DataSpec) -> None:
    """Raises DataError if the dataset's images have another size than the model's."""
    if data.shape == model.data.shape:
        return
    theirs, ours = ("x".join(map(str, shape)) for shape in (data.shape, model.data.shape))
    raise DataError(
        f"The dataset's images are {theirs} (channels, height, width); the model takes {ours}.",
        "dataset",
        f"Import the dataset again with image_size={model.data.height}x{model.data.width}"
        f"&channels={model.data.channels}.",
    )
