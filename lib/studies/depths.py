"""What a dial policy is asked once it is trained, kept answer by answer, so that runs pair by question.

The questions are the same for every run, and trials were scored on others, of the validation split. Easy
ones repeat: depth 1 holds some 24 test questions but for the colour, so `lib.studies.paired` draws by `id`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from lib.dial import MAX_DEPTH, dial_tasks, reach
from lib.engines.ask import Policy
from lib.measure.evaluation import FORMATS, ask_in_every_format, summary
from lib.measure.modes import answer
from lib.runs import Run
from lib.studies.records import RUNS
from lib.tasks import Rollout, Task, rollout_table

PLACE = RUNS / "03_ada_grpo"
DRAW = 123  # the seed of the questions
DEPTHS = range(1, MAX_DEPTH + 1)
DEEPER = range(MAX_DEPTH + 1, MAX_DEPTH + 5)  # out of distribution


@cache
def question_sets() -> dict[str, list[Task]]:
    """The test questions by set: 1,200 balanced over the tiers, 200 deeper ones, 300 of additions only."""
    return {
        "balanced": dial_tasks(1200, seed=DRAW),
        "deeper": dial_tasks(200, seed=DRAW, depths=DEEPER, distinct=True),
        "additions": dial_tasks(300, seed=DRAW, depths=DEPTHS, distinct=True, world="additions"),
    }


@cache
def forced_questions() -> list[Task]:
    """30 test questions of each depth that every format is forced on."""
    return dial_tasks(360, seed=DRAW + 1, depths=DEPTHS, distinct=True)


# ---- ask ---------------------------------------------------------------------------------------


def ask_freely(policy: Policy, *, seed: int, run: Run | None = None) -> tuple[dict[str, Any], pd.DataFrame]:
    """The numbers of summary.json and the table of answers; temperature 0.7 as ARM evaluates."""
    tables = {}
    for name, tasks in question_sets().items():
        rollouts = answer(policy, tasks, temperature=0.7, seed=seed)
        if run:
            run.keep_rollouts(name, rollouts)
        tables[name] = rollout_table(rollouts, tasks)
    every = pd.concat([tables["balanced"], tables["deeper"]])
    numbers = summary(tables["balanced"]) | {"depths": by_depth(every)}
    numbers["additions"] = means(tables["additions"]) | {"depths": by_depth(tables["additions"])}
    return numbers, pd.concat([small(table, set=name) for name, table in tables.items()])


def ask_forced(policy: Policy, *, run: Run | None = None) -> tuple[dict[str, Any], pd.DataFrame]:
    """Accuracy by format and depth, each format forced, greedily; and the table of answers."""
    tasks = forced_questions()
    rollouts = ask_in_every_format(policy, tasks)
    if run:
        run.keep_rollouts("forced", rollouts)
    return forced_report(rollouts, tasks)


def forced_report(rollouts: Sequence[Rollout], tasks: Sequence[Task]) -> tuple[dict[str, Any], pd.DataFrame]:
    """What forced responses (the mode is the format) give: accuracy by format and depth, and the answers."""
    table = rollout_table(rollouts, tasks)
    rates = table.groupby(["mode", "depth"])["correct"].mean()
    accuracy = {mode: rates[mode].sort_index().tolist() for mode in FORMATS}
    answers = pd.concat([small(rows, mode=mode) for mode, rows in table.groupby("mode", sort=False)])
    return {"accuracy_by_depth": accuracy}, answers


def means(table: pd.DataFrame) -> dict[str, Any]:
    """Accuracy, mean tokens, shares of the formats ("invalid": no answer could be read) and the count."""
    shares = table["used"].value_counts(normalize=True)
    return {
        "accuracy": float(table["correct"].mean()),
        "mean_tokens": float(table["tokens"].mean()),
        "format_share": {name: float(shares.get(name, 0.0)) for name in (*FORMATS, "invalid")},
        "n": len(table),
    }


def by_depth(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """`means` at each depth."""
    return {str(depth): means(rows) for depth, rows in table.groupby("depth")}


def small(table: pd.DataFrame, **first: str) -> pd.DataFrame:
    """What is kept of each answer; its question is its place in the set."""
    kept = table[["used", "correct", "tokens"]].astype({"correct": bool, "tokens": "int16"})
    kept.insert(0, "question", pd.Series(range(len(kept)), index=kept.index, dtype="int16"))
    for name, value in first.items():
        kept.insert(0, name, value)
    return kept


# ---- read --------------------------------------------------------------------------------------


def read_answers(*methods: str) -> pd.DataFrame:
    """A row per answer of shipped runs: method, seed, set, question, id, tier, depth, used, correct, tokens.

    `used` is the format, or "invalid". `question` counts within its set, the same for every run.
    """
    return read_kept(PLACE, methods, "answers", numbered(question_sets()), ["set", "question"])


def read_forced(*methods: str) -> pd.DataFrame:
    """The same of forced answers, where `mode` is the format, in place of the set."""
    questions = numbered({"forced": forced_questions()}).drop(columns="set")
    return read_kept(PLACE, methods, "forced", questions, ["question"])


def numbered(sets: dict[str, list[Task]]) -> pd.DataFrame:
    """Sets of questions as rows: set, question (its place), id, tier, depth."""
    rows = [
        (name, place, task.id, task.tier, task.depth)
        for name, tasks in sets.items()
        for place, task in enumerate(tasks)
    ]
    return pd.DataFrame(rows, columns=["set", "question", "id", "tier", "depth"])


def read_kept(
    place: Path, methods: Sequence[str], name: str, questions: pd.DataFrame, keys: list[str]
) -> pd.DataFrame:
    """The rows of <place>/<method>/seed_*/<name>.parquet, each with its question, found by `keys`."""
    found = []
    for method in methods:
        paths = sorted((place / method).glob(f"seed_*/{name}.parquet"))
        if not paths:
            raise FileNotFoundError(f"no {name}.parquet of {method!r} in {place}")
        for path in paths:
            seed = int(path.parent.name.removeprefix("seed_"))
            found.append(pd.read_parquet(path).assign(method=method, seed=seed))
    table = pd.concat(found, ignore_index=True).merge(questions, on=keys, how="left", validate="many_to_one")
    first = ["method", "seed", *keys, "id", "tier", "depth"]
    return table[[*first, *(column for column in table if column not in first)]]


# ---- what a wrong answer is made of ------------------------------------------------------------


def fates(answers: pd.DataFrame) -> pd.Series:
    """What became of each answer: right; out of reach (the format cannot); a slip (it can); or invalid.

    A guess out of reach can be right.
    """

    def fate(row: Any) -> str:
        if row.correct:
            return "right"
        if row.used == "invalid":
            return "invalid"
        return "slip" if row.depth <= reach(row.used) else "out of reach"

    return pd.Series([fate(row) for row in answers.itertuples()], index=answers.index, name="fate")
