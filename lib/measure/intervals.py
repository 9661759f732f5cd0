"""Intervals: of a rate, and of a mean."""

from collections.abc import Sequence

import pandas as pd
from scipy.stats import binomtest

Z95 = 1.959964


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
    """The Wilson score interval (95 %) of a rate; it stays inside [0, 1] and is honest at 0 and at 1."""
    if not 0 <= successes <= count or count == 0:
        raise ValueError(f"need 0 <= successes <= count and count > 0, got {successes} of {count}")
    interval = binomtest(successes, count).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(values: Sequence[float], z: float = Z95) -> tuple[float, float]:
    """The normal interval of a mean, from the sample standard deviation (n - 1)."""
    series = pd.Series(values, dtype=float)
    half = z * series.sem() if len(series) > 1 else 0.0
    return series.mean() - half, series.mean() + half
