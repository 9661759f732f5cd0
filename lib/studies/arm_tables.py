"""ARM's Tables 1 and 2 in the dial world, from the answers that `lib.studies.arm_modes` kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from lib.formats import ReasoningFormat
from lib.measure.modes import majority_vote
from lib.studies.depths import question_sets
from lib.studies.records import RUNS

PLACE = RUNS / "04_inference_modes"
POLICIES = {"base": "base", "sft": "SFT", "grpo": "GRPO", "ada_grpo": "Ada-GRPO"}
FORMATS = [format.value for format in ReasoningFormat]
SHORT, LONG = FORMATS[:3], FORMATS[3]
MODES = ["adaptive", *FORMATS, "consensus", "majority"]


def read_answers(folder: Path = PLACE) -> pd.DataFrame:
    """The answers of all runs that are there, with `policy`, `seed`, and the question's `id` and `tier`."""
    files = sorted(folder.glob("*/seed_*/answers.parquet"))
    tables = [
        pd.read_parquet(file).assign(policy=file.parts[-3], seed=int(file.parts[-2].removeprefix("seed_")))
        for file in files
    ]
    answers = pd.concat(tables, ignore_index=True).astype({"mode": str, "used": str, "answer": object})
    return with_questions(answers)


def with_questions(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with `id` and `tier` of their `question`."""
    tasks = question_sets()["balanced"]
    known = {name: [getattr(task, name) for task in tasks] for name in ("id", "tier")}
    return rows.assign(**{name: rows["question"].map(found.__getitem__) for name, found in known.items()})


# ---- one run: a row for each mode and question ---------------------------------------------------


def in_every_mode(answers: pd.DataFrame) -> pd.DataFrame:
    """What each mode gives on each question of one run: correct, tokens in all, responses, long_cot.

    Adaptive is the mean over its samples: what one response gives on average.
    """
    found = {"adaptive": _one_response(answers), "majority": votes(answers), "consensus": _agreed(answers)}
    for format in FORMATS:
        found[format] = _one_response(answers[answers["mode"] == format], mode=format)
    tables = [found[mode].assign(mode=mode) for mode in MODES]
    return pd.concat(tables).reset_index()


def _one_response(answers: pd.DataFrame, mode: str = "adaptive") -> pd.DataFrame:
    rows = answers[answers["mode"] == mode]
    rows = rows.assign(long_cot=rows["used"] == LONG, responses=1.0, correct=rows["correct"].astype(float))
    columns = ["correct", "tokens", "responses", "long_cot", "depth"]
    return rows.groupby("question")[columns].mean()


def _agreed(answers: pd.DataFrame) -> pd.DataFrame:
    """Equations (2) and (3): the short formats where all three agree, else long CoT, and all is paid."""
    by = {
        name: answers[answers["mode"].isin(FORMATS)].pivot(index="question", columns="mode", values=name)
        for name in ("answer", "correct", "tokens", "depth")
    }
    short = by["answer"][SHORT]
    split = ~(short.notna().all(axis=1) & short.eq(short[SHORT[0]], axis=0).all(axis=1))
    correct = by["correct"][LONG].where(split, by["correct"][SHORT[0]]).astype(float)
    tokens = by["tokens"][SHORT].sum(axis=1) + by["tokens"][LONG].where(split, 0)
    return pd.DataFrame(
        {
            "correct": correct,
            "tokens": tokens,
            "responses": 3.0 + split,
            "long_cot": split,
            "depth": by["depth"][LONG],
        }
    )


def votes(answers: pd.DataFrame, count: int = 8) -> pd.DataFrame:
    """Equation (4) on the first `count` adaptive responses; long_cot is the share among them."""
    rows = answers[(answers["mode"] == "adaptive") & (answers["sample"] < count)]

    def elected(ballot: pd.DataFrame) -> float:
        given = [None if pd.isna(one) else one for one in ballot["answer"]]
        winner = majority_vote(given)
        return float(winner is not None and ballot["correct"].iloc[given.index(winner)])

    found = rows.assign(long_cot=rows["used"] == LONG).groupby("question")
    table = found.agg(tokens=("tokens", "sum"), long_cot=("long_cot", "mean"), depth=("depth", "first"))
    right = {question: elected(ballot) for question, ballot in found}
    return table.assign(correct=pd.Series(right), responses=float(count))


def mode_summary(answers: pd.DataFrame) -> dict[str, Any]:
    """The numbers of a run's summary.json, a line per mode; tokens in all."""
    rows = in_every_mode(answers)
    means = rows.groupby("mode", sort=False)[["correct", "tokens", "long_cot"]].mean()
    means.columns = ["accuracy", "mean_tokens", "long_cot_use"]
    return {mode: line.to_dict() for mode, line in means.iterrows()}


# ---- all runs ------------------------------------------------------------------------------------


def every_run(answers: pd.DataFrame) -> pd.DataFrame:
    """`in_every_mode` of each policy and seed."""
    runs = answers.groupby(["policy", "seed"], sort=False)
    tables = [in_every_mode(run).assign(policy=policy, seed=seed) for (policy, seed), run in runs]
    return with_questions(pd.concat(tables, ignore_index=True))
