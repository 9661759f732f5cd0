"""Intervals over a few seeds: by Student's t, and by bootstrap over questions too, one draw for all policies.

With five seeds a percentile interval is somewhat narrow: means of drawn seeds vary by a factor sqrt(4/5) less
than those of new seeds would.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy.stats import t as student_t

Compare = Callable[[np.ndarray, np.ndarray], np.ndarray]
Interval = tuple[float, float, float]  # estimate, low, high


def difference(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Ours minus theirs."""
    return ours - theirs


def saving(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """The share that ours spends less."""
    return 1 - ours / theirs


def bootstrap_mean(answers: pd.DataFrame, column: str, *, draws: int = 4000, seed: int = 0) -> Interval:
    """The mean of a column with its 95 % interval; `answers` has a row per answer, with `seed` and `id`."""
    return interval(drawn_means([answers], column, draws, seed)[0])


def bootstrap_paired(
    ours: pd.DataFrame,
    theirs: pd.DataFrame,
    column: str,
    *,
    compare: Compare = difference,
    draws: int = 4000,
    seed: int = 0,
) -> Interval:
    """A comparison of two means with its 95 % interval, paired by question and by seed.

    Where the seeds of the two are not the same, seeds are drawn for each apart.
    """
    left, right = drawn_means([ours, theirs], column, draws, seed)
    return interval(compare(left, right))


def drawn_means(tables: Sequence[pd.DataFrame], column: str, draws: int, seed: int) -> list[np.ndarray]:
    """The mean of each table, as it is and then in each draw of questions and seeds: (1 + draws,) each.

    The same `seed` draws the same for another column.
    """
    rng = np.random.default_rng(seed)
    ids = tables[0]["id"].unique()
    if any(set(table["id"]) != set(ids) for table in tables[1:]):
        raise ValueError("the answers are to different questions, so they cannot be paired")
    questions = _weights(rng, len(ids), draws)
    names = [tuple(sorted(table["seed"].unique())) for table in tables]
    drawn = {name: _weights(rng, len(name), draws) for name in dict.fromkeys(names)}
    found = []
    for table, name in zip(tables, names, strict=True):
        cells = table.groupby(["seed", "id"])[column].agg(["sum", "size"])
        sums, sizes = (
            cells[part].unstack(fill_value=0).reindex(columns=ids).to_numpy(float) for part in cells
        )
        total, count = (((drawn[name] @ part) * questions).sum(1) for part in (sums, sizes))
        with np.errstate(invalid="ignore"):  # a few answers may all be left out of a draw
            found.append(total / count)
    return found


def _weights(rng: np.random.Generator, count: int, draws: int) -> np.ndarray:
    """How often each of `count` things is drawn: first each once, then at random, (1 + draws, count)."""
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=draws)
    return np.concatenate([np.ones((1, count)), drawn])


def interval(values: np.ndarray) -> Interval:
    """The first value, and where 95 % of the others lie; draws in which nothing was counted are left out."""
    low, high = np.nanquantile(values[1:], [0.025, 0.975])
    return float(values[0]), float(low), float(high)


def seed_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of a few runs and its 95 % interval by Student's t: (mean, low, high)."""
    series = pd.Series(values, dtype=float)
    if len(series) < 2:
        return series.mean(), math.nan, math.nan
    half = student_t.ppf(0.975, len(series) - 1) * series.std(ddof=1) / math.sqrt(len(series))
    return series.mean(), series.mean() - half, series.mean() + half
