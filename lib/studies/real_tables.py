"""What a contest on real questions showed (`lib.studies.real_questions`): tables, and what it took."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from lib.measure.intervals import wilson_interval
from lib.runs import read_json
from lib.studies.paired import bootstrap_mean, bootstrap_paired


def summary(answers: pd.DataFrame, *, ours: str = "learned") -> pd.DataFrame:
    """A row per method: share right with its 95 % interval (Wilson), what it cost, and how far ours is ahead.

    The lead is over the questions that both answered, with a bootstrap interval and McNemar's exact p,
    corrected for all comparisons (Holm). `learnt_from` are answers before the test, `asked` at each question.
    """
    tables = dict(list(answers.groupby("method", sort=False)))
    rows = {name: _row(table) | _lead(tables[ours], table) for name, table in tables.items()}
    found = pd.DataFrame.from_dict(rows, orient="index")
    others = found.index != ours
    found.loc[others, "p (Holm)"] = holm(found.loc[others, "p"].tolist())
    found.loc[~others, ["lead", "lead low", "lead high"]] = math.nan
    return found.drop(columns="p")


def _row(table: pd.DataFrame) -> dict[str, float]:
    given = table.dropna(subset="correct")
    low, high = (
        wilson_interval(int(given["correct"].sum()), len(given)) if len(given) else (math.nan, math.nan)
    )
    row = {"right": given["correct"].mean(), "low": low, "high": high}
    if "judged" in given:
        row |= dict(
            zip(("judged", "judged low", "judged high"), bootstrap_mean(given, "judged"), strict=True)
        )
    return row | {
        "n": len(given),
        "missing": len(table) - len(given),
        "cut": given["cut"].mean(),
        "words": given["words"].mean(),
        "learnt from": table["learnt_from"].iloc[0],
        "asked": table["asked"].iloc[0],
    }


def _lead(ours: pd.DataFrame, other: pd.DataFrame) -> dict[str, float]:
    both = ours.merge(other, on=["seed", "id"]).dropna(subset=["correct_x", "correct_y"])
    if both.empty:
        return dict.fromkeys(("lead", "lead low", "lead high", "p"), math.nan)
    columns = [
        both[["seed", "id", f"correct_{side}"]].set_axis(["seed", "id", "correct"], axis=1) for side in "xy"
    ]
    lead, low, high = bootstrap_paired(columns[0], columns[1], "correct")
    gained, lost = ((columns[a]["correct"] > columns[1 - a]["correct"]).sum() for a in (0, 1))
    p = binomtest(int(gained), int(gained + lost)).pvalue if gained + lost else 1.0
    return {"lead": lead, "lead low": low, "lead high": high, "p": p}


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, by Holm's method."""
    corrected, largest = dict.fromkeys(range(len(values)), 1.0), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[place]))
        corrected[place] = largest
    return list(corrected.values())


def agreement(answers: pd.DataFrame) -> pd.DataFrame:
    """The judge against exact match, a row per method and one for all: where they agree, and who is higher.

    `auc`: how often a right reply is judged above a wrong one; 0.5 is chance. Cut replies are left out: both
    call them wrong by rule.
    """
    given = answers.dropna(subset="correct").query("not cut")
    groups = [("all", given), *given.groupby("method", sort=False)]
    return pd.DataFrame.from_dict({name: _agreement(table) for name, table in groups}, orient="index")


def _agreement(table: pd.DataFrame) -> dict[str, float]:
    right = table["correct"] == 1
    same = int((right == (table["judged"] > 0.5)).sum())
    low, high = wilson_interval(same, len(table))
    means = {
        "judged if right": table.loc[right, "judged"].mean(),
        "if wrong": table.loc[~right, "judged"].mean(),
    }
    auc = roc_auc_score(right, table["judged"]) if right.nunique() == 2 else math.nan
    return {"agree": same / len(table), "low": low, "high": high, "n": len(table)} | means | {"auc": auc}


def spent(folder: Path) -> dict[str, int]:
    """Replies in a cache, and the tokens in and out that the server counted for them, where it did."""
    usages = [read_json(path)["usage"] for path in folder.glob("*.json")]
    kept = [usage for usage in usages if isinstance(usage, dict)]
    found = {"replies": len(usages)}
    for name, field in (("tokens in", "prompt_tokens"), ("tokens out", "completion_tokens")):
        found[name] = sum(n for usage in kept if isinstance(n := usage.get(field), int) and n > 0)
    return found
