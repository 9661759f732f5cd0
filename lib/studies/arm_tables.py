"""ARM's Tables 1 and 2, from the answers that `lib.studies.arm_modes` kept and from ARM-3B's published ones.

Answers are rows with policy, seed, question, id, tier, depth, mode, sample, used, answer, correct, tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from operator import eq
from pathlib import Path
from typing import Any

import pandas as pd

from lib.formats import ReasoningFormat
from lib.measure.modes import consensus, majority_vote
from lib.studies.depths import question_sets
from lib.studies.paired import bootstrap_mean, bootstrap_paired, saving
from lib.studies.records import RUNS

PLACE = RUNS / "04_inference_modes"
DRAWS = 2000  # of a bootstrap
POLICIES = {"base": "base", "sft": "SFT", "grpo": "GRPO", "ada_grpo": "Ada-GRPO"}
FORMATS = [format.value for format in ReasoningFormat]
SHORT, LONG = FORMATS[:3], FORMATS[3]
MODES = ["adaptive", *FORMATS, "consensus", "majority"]
PUBLISHED = {
    "adaptive": "adaptive",
    **dict(zip(FORMATS, ("inst_direct", "inst_cot", "inst_code", "inst_long_cot"), strict=True)),
}
SETS = ("csqa", "openbookqa", "svamp", "aime2025")
# Of ARM's 7B models, averages over its seven sets: accuracy in per cent, and tokens. Table 1 has tokens per
# response, of a vote too; Table 2 the sum of all that consensus writes.
PAPER_TABLE_1 = {
    ("base", "adaptive"): (60.4, 247),
    ("base", "majority"): (68.3, 260),
    ("sft", "adaptive"): (53.0, 347),
    ("sft", "majority"): (62.0, 323),
    ("grpo", "adaptive"): (73.2, 1173),
    ("grpo", "majority"): (76.1, 1164),
    ("ada_grpo", "adaptive"): (72.0, 766),
    ("ada_grpo", "majority"): (75.9, 786),
}
PAPER_TABLE_2 = {
    "adaptive": (72.0, 766),
    "direct": (46.2, 13),
    "short_cot": (65.9, 428),
    "code": (67.5, 497),
    "long_cot": (74.5, 1047),
    "consensus": (75.2, 1856),
}
Equal = Callable[[str, str], bool]


# ---- answers -------------------------------------------------------------------------------------


def read_answers(folder: Path = PLACE) -> pd.DataFrame:
    """The answers of all runs that are there."""
    files = sorted(folder.glob("*/seed_*/answers.parquet"))
    tables = [
        pd.read_parquet(file).assign(policy=file.parts[-3], seed=int(file.parts[-2].removeprefix("seed_")))
        for file in files
    ]
    answers = pd.concat(tables, ignore_index=True).astype({"mode": str, "used": str, "answer": object})
    tasks = question_sets()["balanced"]
    known = {name: [getattr(task, name) for task in tasks] for name in ("id", "tier")}
    return answers.assign(**{name: answers["question"].map(of.__getitem__) for name, of in known.items()})


def read_published(folder: Path) -> pd.DataFrame:
    """ARM-3B's published answers: one adaptive, and one in each format; `tier` and `policy` are the set."""
    formats = {"DIRECT": "direct", "COT": "short_cot", "CODE": "code", "LONG_COT": "long_cot"}
    rows = []
    for name in SETS:
        lines = (folder / f"arm_3b_{name}.jsonl").read_text(encoding="utf-8").splitlines()
        for place, line in enumerate(map(json.loads, lines)):
            for mode, key in PUBLISHED.items():
                given = line[key]
                used = formats.get(given.get("format", ""), mode)
                kept = (mode, used, given["answer"], given["is_correct"], given["token_count"])
                rows.append((name, name, f"{name}/{place}", place, *kept))
    names = ["policy", "tier", "id", "question", "mode", "used", "answer", "correct", "tokens"]
    return pd.DataFrame(rows, columns=names).assign(seed=0, sample=0, depth=0)


# ---- a row for each mode and question ------------------------------------------------------------


def every_run(
    answers: pd.DataFrame, modes: Sequence[str] = tuple(MODES), *, equal: Equal = eq
) -> pd.DataFrame:
    """What each mode gives on each question of each run: correct, tokens in all, responses, long_cot.

    Adaptive is the mean over its samples: what one response gives on average.
    """
    found = []
    for (policy, seed), run in answers.groupby(["policy", "seed"], sort=False):
        known = run.drop_duplicates("question").set_index("question")[["id", "tier", "depth"]]
        for mode in modes:
            rows = _in_mode(run, mode, equal).join(known)
            found.append(rows.reset_index().assign(policy=policy, seed=seed, mode=mode))
    return pd.concat(found, ignore_index=True)


def _in_mode(run: pd.DataFrame, mode: str, equal: Equal) -> pd.DataFrame:
    if mode == "consensus":
        return by_consensus(run, equal)
    if mode == "majority":
        return by_vote(run, equal=equal)
    rows = run[run["mode"] == mode]
    rows = rows.assign(long_cot=rows["used"] == LONG, responses=1.0, correct=rows["correct"].astype(float))
    return rows.groupby("question")[["correct", "tokens", "responses", "long_cot"]].mean()


def by_consensus(run: pd.DataFrame, equal: Equal = eq) -> pd.DataFrame:
    """Equations (2) and (3) from the forced answers: all that was written is paid."""
    forced = run[run["mode"].isin(FORMATS)]
    answer, correct, tokens = (
        forced.pivot(index="question", columns="mode", values=name)[FORMATS]
        for name in ("answer", "correct", "tokens")
    )
    answer = answer.astype(object).where(answer.notna(), None)
    split = pd.Series([consensus(*row, equal=equal)[1] for row in answer.to_numpy()], index=answer.index)
    return pd.DataFrame(
        {
            "correct": correct[LONG].where(split, correct[SHORT[0]]).astype(float),
            "tokens": tokens[SHORT].sum(axis=1) + tokens[LONG].where(split, 0),
            "responses": 3.0 + split,
            "long_cot": split.astype(float),
        }
    )


def by_vote(run: pd.DataFrame, count: int = 8, *, equal: Equal = eq) -> pd.DataFrame:
    """Equation (4) on the first `count` adaptive responses; long_cot is the share among them."""
    rows = run[(run["mode"] == "adaptive") & (run["sample"] < count)].sort_values(["question", "sample"])
    answers = rows["answer"].astype(object).where(rows["answer"].notna(), None).to_numpy().reshape(-1, count)
    correct, questions = rows["correct"].to_numpy().reshape(-1, count), rows["question"].to_numpy()[::count]
    right = []
    for ballot, verdicts in zip(answers.tolist(), correct, strict=True):
        winner = majority_vote(ballot, equal=equal)
        right.append(float(winner is not None and verdicts[ballot.index(winner)]))
    sums = rows.assign(long_cot=rows["used"] == LONG).groupby("question")
    table = sums.agg(tokens=("tokens", "sum"), long_cot=("long_cot", "mean"))
    return table.assign(correct=pd.Series(right, index=questions), responses=float(count))


def mode_summary(answers: pd.DataFrame) -> dict[str, Any]:
    """The numbers of a run's summary.json, a line per mode; tokens in all."""
    rows = every_run(answers.assign(policy="", seed=0, id=answers["question"], tier=""))
    means = rows.groupby("mode", sort=False)[["correct", "tokens", "long_cot"]].mean()
    means.columns = ["accuracy", "mean_tokens", "long_cot_use"]
    return {str(mode): line.to_dict() for mode, line in means.iterrows()}


# ---- tables with intervals -----------------------------------------------------------------------


def with_intervals(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Accuracy and tokens in all for each group of `every_run`, with intervals over seeds and questions."""
    lines = {}
    for names, group in rows.groupby(list(by), sort=False):
        line = {}
        for name, column in (("accuracy", "correct"), ("tokens", "tokens")):
            line[name], line[f"{name}_low"], line[f"{name}_high"] = bootstrap_mean(group, column, draws=DRAWS)
        lines[names] = line | {
            "per response": group["tokens"].sum() / group["responses"].sum(),
            "long CoT": group["long_cot"].mean(),
        }
    table = pd.DataFrame(lines).T
    table.index.names = list(by)
    return table


def in_pairs(rows: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """How much more accurate one way is than another, and the share of tokens it saves, with intervals.

    `rows` have a column `way`; the two of a pair are compared question by question and seed by seed.
    """
    lines = {}
    for ours, theirs in pairs:
        left, right = (rows[rows["way"] == name] for name in (ours, theirs))
        ahead = bootstrap_paired(left, right, "correct", draws=DRAWS)
        saved = bootstrap_paired(left, right, "tokens", compare=saving, draws=DRAWS)
        names = [f"{name}{end}" for name in ("ahead", "saved") for end in ("", "_low", "_high")]
        lines[f"{ours} - {theirs}"] = dict(zip(names, (*ahead, *saved), strict=True))
    return pd.DataFrame(lines).T


def as_text(table: pd.DataFrame, column: str, digits: int = 3, *, times: int = 1) -> pd.Series:
    """A column of such a table with its interval, to be read: "0.979 [0.971, 0.985]"."""
    columns = [column, f"{column}_low", f"{column}_high"]
    said = [
        f"{a:.{digits}f} [{b:.{digits}f}, {c:.{digits}f}]" for a, b, c in (times * table[columns]).to_numpy()
    ]
    return pd.Series(said, index=table.index)


# ---- as they are shown ---------------------------------------------------------------------------


def table_two(table: pd.DataFrame) -> pd.DataFrame:
    """Every mode of every policy, Ada-GRPO's beside the paper's Table 2."""
    paper = pd.DataFrame(PAPER_TABLE_2, index=["ARM-7B accuracy, %", "ARM-7B tokens"], dtype=object).T
    paper = pd.concat({"ada_grpo": paper}, names=table.index.names)
    ours = table.loc[
        [(policy, mode) for policy in POLICIES for mode in MODES if (policy, mode) in table.index]
    ]
    shown = {
        "accuracy": as_text(ours, "accuracy"),
        "tokens in all": as_text(ours, "tokens", 1),
        "long CoT use": ours["long CoT"].astype(float).round(3),
    }
    return pd.DataFrame(shown).join(paper).fillna("-").rename(index=POLICIES)


def table_one(table: pd.DataFrame) -> pd.DataFrame:
    """One response and a vote of every policy, beside the paper's Table 1."""
    paper = pd.DataFrame(PAPER_TABLE_1, index=["ARM-7B accuracy, %", "ARM-7B tokens"]).T
    paper = paper.rename_axis(index=table.index.names)
    ours = table.loc[[key for key in PAPER_TABLE_1 if key in table.index]]
    shown = {
        "accuracy": as_text(ours, "accuracy"),
        "tokens per response": ours["per response"].round(1),
        "tokens in all": ours["tokens"].round(1),
    }
    words = POLICIES | {"adaptive": "one response", "majority": "majority of 8"}
    return pd.DataFrame(shown).join(paper).rename(index=words)


def pairs_shown(pairs: pd.DataFrame) -> pd.DataFrame:
    """What `in_pairs` found, to be read."""
    points, saved = as_text(pairs, "ahead", 2, times=100), as_text(pairs, "saved")
    return pd.DataFrame({"points ahead": points, "share of tokens saved": saved})


def sets_shown(table: pd.DataFrame) -> pd.DataFrame:
    """Modes by set: accuracy with its interval, and tokens."""
    shown = {"accuracy": as_text(table, "accuracy"), "tokens": table["tokens"].map("{:.0f}".format)}
    by_set = pd.DataFrame(shown).unstack("policy").rename_axis(columns=[None, "set"])
    return by_set.loc[MODES[:-1], (slice(None), list(SETS))]
