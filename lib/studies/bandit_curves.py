"""The shipped experiments of notebook 06, read again: means over seeds, paired differences, who is ahead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import ttest_1samp

from lib.runs import ROOT
from lib.studies.paired import seed_interval
from lib.studies.real_tables import holm

RUNS = ROOT / "data" / "reference_runs"
SURE = 0.05  # a corrected p below it is called sure


def read(study: str) -> pd.DataFrame:
    """All rows of a study, "budget" or "heads", with a column `method` first; those that are shipped."""
    paths = sorted((RUNS / f"06_{study}").glob("*/rewards.csv"))
    rows = [pd.read_csv(path).assign(method=path.parent.name) for path in paths]
    found = pd.concat(rows, ignore_index=True)
    return found[["method", *found.columns.drop("method")]]


def over_seeds(
    rows: pd.DataFrame, by: Sequence[str] = ("method", "answers"), *, draws: int = 4000
) -> pd.DataFrame:
    """The mean reward over seeds with its 95 % bootstrap interval: columns mean, low, high, seeds."""
    found = {}
    for key, part in rows.groupby(list(by), sort=False):
        values = part.groupby("seed")["reward"].mean().to_numpy()
        drawn = np.random.default_rng(0).choice(values, (draws, len(values))).mean(1)
        found[key] = (values.mean(), *np.quantile(drawn, [0.025, 0.975]), len(values))
    index = pd.MultiIndex.from_tuples(found, names=list(by))
    table = pd.DataFrame(found.values(), index=index, columns=["mean", "low", "high", "seeds"])
    return table.astype({"seeds": int})


def compare(rows: pd.DataFrame, ours: str, others: Sequence[str], answers: Sequence[int]) -> pd.DataFrame:
    """Ours less each other one, paired by seed, at each number of answers: 95 % t interval, p, Holm's p.

    Holm's correction is over all rows of this call. A pair that is not shipped is left out.
    """
    wide = rows.pivot_table(index="seed", columns=["method", "answers"], values="reward")
    found = []
    for other in others:
        for count in answers:
            if {(ours, count), (other, count)} <= set(wide.columns):
                gaps = (wide[ours, count] - wide[other, count]).dropna()
                p = ttest_1samp(gaps, 0).pvalue
                found.append((ours, other, count, *seed_interval(gaps), p))
    table = pd.DataFrame(found, columns=["ours", "other", "answers", "mean", "low", "high", "p"])
    return table.assign(holm=holm(table["p"].tolist()))


def with_p(found: pd.DataFrame) -> pd.DataFrame:
    """What `compare` or `gains` found, as a table: differences with intervals, p after Holm's correction."""
    p = found["holm"].map(lambda p: "< .001" if p < 5e-4 else f"{p:.3f}")
    return found[["mean", "low", "high"]].round(3).assign(**{"p, corrected": p})


def gains(rows: pd.DataFrame, over: str, methods: Sequence[str], answers: int) -> pd.DataFrame:
    """Each method less one and the same, as in `compare`."""
    found = compare(rows, over, methods, [answers])
    turned = {"ours": found["other"], "mean": -found["mean"], "low": -found["high"], "high": -found["low"]}
    return found.assign(other=over, **turned)


def in_words(found: pd.DataFrame) -> pd.DataFrame:
    """`compare` to read: a row per number of answers, a column per rival; ? where it is not sure."""
    text = [
        f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]" + ("" if p < SURE else " ?")
        for mean, low, high, p in found[["mean", "low", "high", "holm"]].itertuples(index=False)
    ]
    wide = found.assign(text=text).pivot(index="answers", columns="other", values="text")
    return wide[list(dict.fromkeys(found["other"]))].fillna("-")


def levels(mean: pd.DataFrame, labels: Mapping[str, str], answers: Sequence[int]) -> pd.DataFrame:
    """`over_seeds` to read: a row for each method that has a label, a column per number of answers."""
    rows = {}
    for method, label in labels.items():
        there = mean[mean.index.get_level_values(0) == method].droplevel(0)
        if len(there):
            cells = there.reindex(answers)[["mean", "low", "high"]].itertuples()
            rows[label] = {
                n: "-" if a != a else f"{a:.3f} [{low:.3f}, {high:.3f}]" for n, a, low, high in cells
            }
    return pd.DataFrame.from_dict(rows, orient="index")
