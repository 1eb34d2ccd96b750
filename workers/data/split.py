"""Train or validation, decided by content: the same images give the same split, and what is equal stays together."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

SHARE, LARGEST = 0.2, 10_000
TRAIN, VALIDATION = "train", "validation"


def split(keys: Sequence[Iterable[bytes]], tables: Sequence[str], given: Sequence[str | None]) -> list[str | None]:
    """The side of every row, None for a row that has to go because its like is on the other side.

    Rows that share a key (an image's hash, a group's name) are on one side. `tables` says which column a row counts
    for: the two domains of an unpaired dataset each get their validation images. Without enough distinct images all
    rows are for training.
    """
    groups = _connected(keys)
    if {TRAIN, VALIDATION} <= set(given):
        sides = _as_given(groups, given)
        if VALIDATION in sides:
            return sides
    chosen = _chosen(groups, tables)
    return [VALIDATION if group in chosen else TRAIN for group in groups]


def _connected(keys: Sequence[Iterable[bytes]]) -> list[bytes]:
    """For every row the smallest key that it is connected with, over any number of shared keys."""
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


def _as_given(groups: list[bytes], given: Sequence[str | None]) -> list[str | None]:
    learned = {group for group, side in zip(groups, given, strict=True) if side != VALIDATION}
    return [
        (None if group in learned else VALIDATION) if side == VALIDATION else TRAIN
        for group, side in zip(groups, given, strict=True)
    ]


def _chosen(groups: list[bytes], tables: Sequence[str]) -> set[bytes]:
    """Groups for validation, in the order of their hashes, until each table has its share."""
    sizes: dict[bytes, Counter[str]] = defaultdict(Counter)
    for group, table in zip(groups, tables, strict=True):
        sizes[group][table] += 1
    counts = Counter(tables)
    wanted = {table: min(LARGEST, max(1, round(count * SHARE))) for table, count in counts.items()}
    taken: Counter[str] = Counter()
    chosen = set()
    for group in sorted(sizes):
        if all(taken[table] + size <= min(wanted[table], counts[table] - 1) for table, size in sizes[group].items()):
            chosen.add(group)
            taken += sizes[group]
    for table in counts:
        if not taken[table]:  # a few large groups: the smallest that leaves something to learn from
            fitting = [
                group
                for group in sorted(sizes, key=lambda group: (sizes[group][table], group))
                if sizes[group][table]
                and all(taken[other] + size < counts[other] for other, size in sizes[group].items())
            ]
            if not fitting:
                return set()
            chosen.add(fitting[0])
            taken += sizes[fitting[0]]
    return chosen
