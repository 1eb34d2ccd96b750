"""Groups of ages: where one ends and the next begins, what each is called, and which one is meant.

Ages are numbers from 0 in any unit; with years the groups are those of Antipov et al. (2017), as far as the data has
such ages.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from models.types import ConfigError, DataError, InputError

USUAL = (19.0, 30.0, 40.0, 50.0, 60.0)
FEW, MOST = 8, 6  # ages so few are a group each; groups made where the usual ones do not part the data


def boundaries_of(ages: Sequence[float]) -> tuple[float, ...]:
    """Ages at which a new group begins, so that no group is empty. Raises DataError when all are of one age.

    A few different ages are a group each. Else a usual group without anyone joins the younger one beside it, and the
    data is cut into equal parts where the usual boundaries leave it whole.
    """
    found = sorted(set(ages))
    if len(found) < 2:
        raise DataError(
            "all images are of one age, so there is no other to show them at",
            field="dataset",
            remedy="use a dataset with images of two ages or more in the column age of labels.csv",
        )
    if len(found) <= FEW:
        return tuple(between(young, old) for young, old in pairwise(found))
    parted = tuple(start for start, end in pairwise((*USUAL, math.inf)) if any(start <= age < end for age in found))
    kept = tuple(start for start in parted if found[0] < start)
    if kept:
        return kept
    equal = {ages[round(part * (len(ages) - 1) / MOST)] for part in range(1, MOST)}
    return tuple(sorted(equal - {found[0]}))


def between(young: float, old: float) -> float:
    """The highest usual boundary that parts two ages, else their middle, in whole numbers where that will do."""
    usual = [start for start in USUAL if young < start <= old]
    middle = (young + old) / 2
    return usual[-1] if usual else float(math.ceil(middle)) if math.ceil(middle) <= old else middle


def check_boundaries(boundaries: Sequence[float], ages: Sequence[float] | None) -> None:
    """Raises ConfigError for boundaries that do not rise, or that leave a group without training images."""
    if any(one >= other for one, other in pairwise(boundaries)):
        raise ConfigError("boundaries must rise from each to the next", field="boundaries")
    occupied = {int(group) for group in groups_of(torch.tensor(ages), boundaries)} if ages else None
    for group, name in enumerate(names_of(boundaries)):
        if occupied is not None and group not in occupied:
            raise ConfigError(
                f"too few training images are of the ages {name}; the data has {min(ages):g} to {max(ages):g}",
                field="boundaries",
                remedy="leave boundaries out, or join this group with a neighbour",
            )


def names_of(boundaries: Sequence[float]) -> tuple[str, ...]:
    """What the groups are called: 0-18, 19-29, ..., 60+ with whole boundaries; else below 0.5, 0.5 to 1.5, 1.5+."""
    ends = [f"{start:.6g}" for start in boundaries]
    if any(start != int(start) for start in boundaries):
        middle = [f"{low} to {high}" for low, high in pairwise(ends)]
        return (f"below {ends[0]}", *middle, f"{ends[-1]}+")
    spans = [(int(low), int(high) - 1) for low, high in pairwise((0, *boundaries))]
    return (*(f"{low}-{high}" if low < high else f"{low}" for low, high in spans), f"{ends[-1]}+")


def groups_of(ages: Tensor, boundaries: Sequence[float]) -> Tensor:
    """Ages (n,) -> the index of the group of each, int64."""
    return torch.bucketize(ages.float(), torch.tensor(boundaries, device=ages.device), right=True)


def group_named(given: str, names: Sequence[str], boundaries: Sequence[float] | None) -> int:
    """The group of a name, or of an age in it where groups have boundaries. Raises InputError naming what there is."""
    if given in names:
        return list(names).index(given)
    try:
        age = float(given)
    except ValueError:
        age = math.nan
    if boundaries and 0 <= age < math.inf:
        return int(groups_of(torch.tensor([age]), boundaries)[0])
    also = " or an age as a number" if boundaries else ""
    raise InputError(f"there is no such age group; allowed is one of {', '.join(names)}{also}", field="to")
