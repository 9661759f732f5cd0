"""Intervals: of a rate, and of a mean."""

import math
from collections.abc import Sequence

import pandas as pd

Z95 = 1.959964


def wilson_interval(successes: int, count: int, z: float = Z95) -> tuple[float, float]:
    """The Wilson score interval of a rate; it stays inside [0, 1] and is honest at 0 and at 1."""
    if not 0 <= successes <= count or count == 0:
        raise ValueError(f"need 0 <= successes <= count and count > 0, got {successes} of {count}")
    rate = successes / count
    centre = (rate + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * math.sqrt(rate * (1 - rate) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(values: Sequence[float], z: float = Z95) -> tuple[float, float]:
    """The normal interval of a mean, from the sample standard deviation (n - 1)."""
    series = pd.Series(values, dtype=float)
    half = z * series.std(ddof=1) / math.sqrt(len(series)) if len(series) > 1 else 0.0
    return series.mean() - half, series.mean() + half
