"""How sure a share is that was counted: binomial confidence intervals."""

import math

Z95 = 1.959964


def wilson(hits: int, total: int, z: float = Z95) -> tuple[float, float]:
    """(low, high) around hits / total at 95 % (Wilson 1927); (0, 1) of nothing."""
    if not total:
        return 0.0, 1.0
    share, room = hits / total, z * z / total
    middle = (share + room / 2) / (1 + room)
    half = z / (1 + room) * math.sqrt(share * (1 - share) / total + room / (4 * total))
    return (0.0 if hits == 0 else max(0.0, middle - half)), (1.0 if hits == total else min(1.0, middle + half))
