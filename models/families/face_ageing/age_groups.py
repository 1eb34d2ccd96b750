"""Age groups: their boundaries, their names, and the group of an age or a name.

Ages are numbers from 0, in any unit. In years the default groups are those of Antipov et al. (2017), less those that
would be empty.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from models.types import ConfigError, DataError, InputError

PAPER_BOUNDARIES = (19.0, 30.0, 40.0, 50.0, 60.0)
FEW_AGES = 8  # up to this many different ages are a group each
EQUAL_GROUPS = 6  # groups of equal count, where all ages lie in one group of the paper


def boundaries_of(ages: Sequence[float]) -> tuple[float, ...]:
    """Default boundaries for sorted `ages`: the ages at which a new group begins. No group is empty.

    Up to eight different ages are a group each. Otherwise the groups are those of the paper, an empty one merged into
    the younger one beside it; six groups of equal count where all ages lie in one of them. Raises DataError when all
    ages are the same.
    """
    different = sorted(set(ages))
    if len(different) < 2:
        raise DataError(
            "all images have the same age; at least two ages are needed",
            field="dataset",
            remedy="use a dataset whose labels.csv has two or more ages in its column age",
        )
    if len(different) <= FEW_AGES:
        return tuple(between(young, old) for young, old in pairwise(different))
    groups = pairwise((*PAPER_BOUNDARIES, math.inf))
    occupied = [start for start, end in groups if any(start <= age < end for age in different)]
    boundaries = tuple(start for start in occupied if different[0] < start)
    if boundaries:
        return boundaries
    equal = {ages[round(part * (len(ages) - 1) / EQUAL_GROUPS)] for part in range(1, EQUAL_GROUPS)}
    return tuple(sorted(equal - {different[0]}))


def between(young: float, old: float) -> float:
    """The highest boundary of the paper between two ages, else their middle, rounded up where it stays between them."""
    of_paper = [start for start in PAPER_BOUNDARIES if young < start <= old]
    middle = (young + old) / 2
    return of_paper[-1] if of_paper else float(math.ceil(middle)) if math.ceil(middle) <= old else middle


def check_boundaries(boundaries: Sequence[float], ages: Sequence[float] | None) -> None:
    """Raises ConfigError for boundaries that do not increase, or that leave a group without training images."""
    if any(one >= other for one, other in pairwise(boundaries)):
        raise ConfigError(
            f"boundaries must increase from each to the next; you sent {list(boundaries)}", field="boundaries"
        )
    occupied = {int(group) for group in groups_of(torch.tensor(ages), boundaries)} if ages else None
    for group, name in enumerate(names_of(boundaries)):
        if occupied is not None and group not in occupied:
            raise ConfigError(
                f"no training image has an age in the group {name}; the data has ages {min(ages):g} to {max(ages):g}",
                field="boundaries",
                remedy="leave boundaries out, or merge this group with a neighbour",
            )


def names_of(boundaries: Sequence[float]) -> tuple[str, ...]:
    """Names of the groups: 0-18, 19-29, ..., 60+ for integer boundaries; else below 0.5, 0.5 to 1.5, 1.5+."""
    ends = [f"{start:.6g}" for start in boundaries]
    if any(start != int(start) for start in boundaries):
        middle = [f"{low} to {high}" for low, high in pairwise(ends)]
        return (f"below {ends[0]}", *middle, f"{ends[-1]}+")
    spans = [(int(low), int(high) - 1) for low, high in pairwise((0, *boundaries))]
    return (*(f"{low}-{high}" if low < high else f"{low}" for low, high in spans), f"{ends[-1]}+")


def groups_of(ages: Tensor, boundaries: Sequence[float]) -> Tensor:
    """Ages (n,) -> indices of their groups (n,), int64."""
    return torch.bucketize(ages.float(), torch.tensor(boundaries, device=ages.device), right=True)


def group_named(given: str, names: Sequence[str], boundaries: Sequence[float] | None) -> int:
    """The index of the group with a name, or, with `boundaries`, of the group of an age. Raises InputError."""
    if given in names:
        return list(names).index(given)
    try:
        age = float(given)
    except ValueError:
        age = math.nan
    if boundaries and 0 <= age < math.inf:
        return int(groups_of(torch.tensor([age]), boundaries)[0])
    also = " or an age as a number" if boundaries else ""
    raise InputError(f"unknown age group; choose one of {', '.join(names)}{also}", field="to")
