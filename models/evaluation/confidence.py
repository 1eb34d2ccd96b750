"""Binomial confidence intervals."""

import math

Z95 = 1.959964


def wilson(hits: int, total: int, z: float = Z95) -> tuple[float, float]:
    """(low, high) at 95 % for the fraction hits / total (Wilson 1927); (0, 1) if total is 0."""
    if not total:
        return 0.0, 1.0
    p, t = hits / total, z * z / total
    centre = (p + t / 2) / (1 + t)
    half = z / (1 + t) * math.sqrt(p * (1 - p) / total + t / (4 * total))
    return (0.0 if hits == 0 else max(0.0, centre - half)), (1.0 if hits == total else min(1.0, centre + half))
