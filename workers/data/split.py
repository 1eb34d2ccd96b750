"""Splits rows into training and validation by their content: equal images stay on one side, in every import."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

VALIDATION_FRACTION, MAX_VALIDATION = 0.2, 10_000
TRAIN, VALIDATION = "train", "validation"


def split(keys: Sequence[Iterable[bytes]], tables: Sequence[str], stated: Sequence[str | None]) -> list[str | None]:
    """The side of each row; None removes a row of validation that shares a key with a row of training.

    Rows that share a key (an image's hash, a group's name) are on one side. `tables` names the column that a row counts
    for: each domain of an unpaired dataset gets its own validation images. `stated` is the upload's own split, used if
    it has both sides. With too few distinct images all rows are for training.
    """
    groups = _connected(keys)
    if {TRAIN, VALIDATION} <= set(stated):
        sides = _as_stated(groups, stated)
        if VALIDATION in sides:
            return sides
    validation = _validation_groups(groups, tables)
    return [VALIDATION if group in validation else TRAIN for group in groups]


def _connected(keys: Sequence[Iterable[bytes]]) -> list[bytes]:
    """For each row the smallest key of its connected component (union-find): rows that share a key are connected."""
    parent: dict[bytes, bytes] = {}

    def root(key: bytes) -> bytes:
        while (up := parent.setdefault(key, key)) != key:
            parent[key] = parent[up]
            key = up
        return key

    firsts = []
    for row in keys:
        first, *others = row
        firsts.append(first)
        here = root(first)
        for other in others:
            there = root(other)
            here, there = min(here, there), max(here, there)
            parent[there] = here
    return [root(first) for first in firsts]


def _as_stated(groups: list[bytes], stated: Sequence[str | None]) -> list[str | None]:
    train = {group for group, side in zip(groups, stated, strict=True) if side != VALIDATION}
    return [
        (None if group in train else VALIDATION) if side == VALIDATION else TRAIN
        for group, side in zip(groups, stated, strict=True)
    ]


def _validation_groups(groups: list[bytes], tables: Sequence[str]) -> set[bytes]:
    """Groups for validation, in the order of their hashes, until each table has its fraction."""
    sizes: dict[bytes, Counter[str]] = defaultdict(Counter)
    for group, table in zip(groups, tables, strict=True):
        sizes[group][table] += 1
    counts = Counter(tables)
    target = {table: min(MAX_VALIDATION, max(1, round(count * VALIDATION_FRACTION))) for table, count in counts.items()}
    used: Counter[str] = Counter()
    validation = set()
    for group in sorted(sizes):
        if all(used[table] + size <= min(target[table], counts[table] - 1) for table, size in sizes[group].items()):
            validation.add(group)
            used += sizes[group]
    for table in counts:
        if not used[table]:  # a few large groups: use the smallest that leaves rows for training
            fitting = [
                group
                for group in sorted(sizes, key=lambda group: (sizes[group][table], group))
                if sizes[group][table]
                and all(used[other] + size < counts[other] for other, size in sizes[group].items())
            ]
            if not fitting:
                return set()
            validation.add(fitting[0])
            used += sizes[fitting[0]]
    return validation
