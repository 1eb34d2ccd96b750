"""Where along a training something is told, shown or kept: points that follow from its length alone."""

POINTS = 200, 1000
"""Points of a curve: this many, in long trainings one each 50 updates, up to the second number."""
SNAPSHOTS = 72
MARKS = 8
"""Checkpoints kept along a training, each at twice the images of the one before."""


def window_of(steps: int) -> int:
    """Updates that one point of a curve is the mean of."""
    return max(1, -(-steps // POINTS[1]), min(50, -(-steps // POINTS[0])))


def snapshot_steps(steps: int) -> set[int]:
    """Updates after which to look: none, 1, 2, 4, 8 ... and, once these are too far apart, at even distances.

    All of them in a training of 72 updates or fewer.
    """
    count = min(steps, SNAPSHOTS)
    regular = {round(index * steps / count) for index in range(count + 1)}
    return regular | {2**power for power in range(steps.bit_length()) if 2**power < steps / count}


def mark_steps(steps: int) -> set[int]:
    """Updates after which a checkpoint stays to be forked from: the end, half of it, a quarter, ...

    Each is among the snapshots, so that one sees what one forks.
    """
    looks = sorted(snapshot_steps(steps) - {0})
    return {min(looks, key=lambda look: (abs(look - steps / 2**halving), look)) for halving in range(MARKS)}
