"""A run of notebook 05 itself, of the dial world or of real models, as answers like the shipped ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from lib.measure.evaluation import summarise
from lib.studies import thinking_bounds
from lib.studies.paired import Interval, bootstrap_mean
from lib.studies.thinking_answers import used
from lib.tasks import Rollout, Task, rollout_table
from lib.thinking import NOTHINKING


def as_answers(rollouts: Sequence[Rollout], tasks: Sequence[Task], *, start: str) -> pd.DataFrame:
    """A row per answer with the columns of shipped ones, and those of a rollout; the set is "balanced".

    `start` is the usual first word of a thought: another one makes a response "other".
    """
    table = rollout_table(rollouts, tasks)
    known = {"id": table["task_id"], "question": range(len(table)), "set": "balanced"}
    known["used"] = [used(one, start) for one in rollouts]
    return table.assign(**known, skips=table["format"] == NOTHINKING)


def level(answers: pd.DataFrame) -> str:
    """What tells difficulty: the depth (in MATH, the level) where all answers have one, else the tier."""
    return "depth" if answers["depth"].notna().all() else "tier"


def ends(found: Interval) -> dict[str, float]:
    """An interval by name, to be quoted."""
    return dict(zip(("mean", "low", "high"), found, strict=True))


def routers(live: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Thresholds on the level, where there is one, and hindsight, from one answer a mode to each question."""
    table = thinking_bounds.paired_modes(live)
    known = sorted(table["depth"].dropna().unique())
    found = {
        f"threshold {place}": thinking_bounds.routed(table, table["depth"] <= place) for place in [0, *known]
    }
    everything = thinking_bounds.routed(table, pd.Series(True, index=table.index))
    return {**found, "threshold 99": everything} | {
        "hindsight": thinking_bounds.routed(table, thinking_bounds.in_hindsight(table))
    }


def points(answers: pd.DataFrame, groups: Mapping[str, Mapping[str, str]]) -> pd.DataFrame:
    """Where policies lie on the plane: policy, group, accuracy and tokens with _low and _high.

    `groups` has the names of a group's policies by method. Intervals are Wilson's and normal for one run,
    else by bootstrap over seeds and questions.
    """
    rows = []
    for group, names in groups.items():
        for method, name in names.items():
            part = answers[answers["method"] == method]
            if len(part):
                rows.append({"policy": name, "group": group, **_measured(part)})
    return pd.DataFrame(rows)


def _measured(part: pd.DataFrame) -> dict[str, float]:
    if part["seed"].nunique() == 1:
        [row] = summarise(part, ["method"]).to_dict(orient="records")
        return {name: row[name] for name in row if name.startswith(("accuracy", "tokens"))}
    found: dict[str, float] = {}
    for name, column in (("accuracy", "correct"), ("tokens", "tokens")):
        values = bootstrap_mean(part, column, draws=500)
        found |= dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))
    return found
