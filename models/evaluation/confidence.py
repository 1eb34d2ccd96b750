"""Confidence intervals of a binomial proportion: Wilson (Wilson 1927) and Clopper-Pearson (1934)."""

import math

import numpy as np
from scipy.special import betaincinv

Z95 = 1.959964


def wilson(hits: int, total: int, z: float = Z95) -> tuple[float, float]:
    """(low, high) at 95 % for the fraction hits / total (Wilson 1927); (0, 1) if total is 0."""
    if not total:
        return 0.0, 1.0
    p, t = hits / total, z * z / total
    centre = (p + t / 2) / (1 + t)
    half = z / (1 + t) * math.sqrt(p * (1 - p) / total + t / (4 * total))
    return (0.0 if hits == 0 else max(0.0, centre - half)), (1.0 if hits == total else min(1.0, centre + half))


def lower_bound(hits: np.ndarray, total: int, alpha: float) -> np.ndarray:
    """One-sided Clopper-Pearson lower bound of a proportion at confidence 1 - alpha, given `hits` of `total`."""
    hits = np.asarray(hits, dtype=np.float64)
    return np.where(hits > 0, betaincinv(np.maximum(hits, 1), total - hits + 1, alpha), 0.0)


def interval(hits: float, total: int, level: float = 0.95) -> tuple[float, float]:
    """The two-sided Clopper-Pearson interval of a proportion."""
    tail = (1 - level) / 2
    high = 1 - float(lower_bound(np.array(total - hits), total, tail))
    return float(lower_bound(np.array(hits), total, tail)), high
