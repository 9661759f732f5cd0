"""Notebook 01: does strictness matter? SFT on what an exact and an erring teacher wrote, filtered or not.

The erring teacher is the base itself at temperature 1: it errs where its skill ends, and only there.
The careless one is the same at temperature 2: it errs everywhere. No set is balanced, all are of one size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from lib.dial.responses import gold_response
from lib.dial.tasks import dial_tasks, gold_rows
from lib.dial.world import MAX_DEPTH, parse_question, sample_questions
from lib.engines.ask import Policy, ask
from lib.formats import ReasoningFormat
from lib.methods.sft import SFTConfig, train_sft
from lib.policies.load import load_policy
from lib.runs import Run, read_json
from lib.studies.qlora_tables import format_report
from lib.studies.records import SFT_SHARE, Outcome
from lib.studies.sft_set import Check, build_sft_set, check_form, check_response
from lib.studies.teachers import Teacher, base_teacher, dial_teacher
from lib.tasks import Rollout, Task, rollout_table

QUESTIONS, ROWS, STEPS = 1500, 1280, 200
# method: the teacher's temperature, None for the exact one, and what its responses must pass
SETS: dict[str, tuple[float | None, Check]] = {
    "exact": (None, check_form),
    "filtered": (1.0, check_response),
    "unfiltered": (1.0, check_form),
    "careless_filtered": (2.0, check_response),
    "careless_unfiltered": (2.0, check_form),
}


def settings(seed: int) -> SFTConfig:
    """The same training for all sets. The last step counts: to choose the best would take exact rows."""
    return SFTConfig.cpu(weights="full", learning_rate=1e-3, max_steps=STEPS, save_every=STEPS, seed=seed)


def training_set(method: str, seed: int) -> list[dict[str, str]]:
    """`ROWS` rows drawn from what is left of a teacher's responses."""
    temperature, check = SETS[method]
    teacher: Teacher = dial_teacher
    if temperature is not None:
        teacher = base_teacher(load_policy("dial-base"), temperature=temperature, seed=seed)
    given = dial_tasks(QUESTIONS, split="train", seed=seed)
    writers = dict.fromkeys(ReasoningFormat, teacher)
    built = build_sft_set(given, writers, seed=seed, sft_share=SFT_SHARE, balance=False, check=check)
    if len(built.rows) < ROWS:
        raise ValueError(f"{method}: {len(built.rows)} rows are left, and {ROWS} are needed")
    return built.rows[:ROWS]


def strict_or_not(method: str, seed: int, run: Run) -> Outcome:
    """Notebook 01: dial-base taught by one of the `SETS`."""
    rows = training_set(method, seed)
    validation_rows = gold_rows(sample_questions(64, seed=seed, split="validation"), seed=seed)
    model, tokenizer, facts = train_sft(settings(seed), rows, validation_rows, run, say=print)
    measured = measure((model, tokenizer), seed)
    for name, rollouts in measured.items():
        run.keep_rollouts(name, rollouts)
    tables = {name: rollout_table(rollouts, questions()) for name, rollouts in measured.items()}
    answers = pd.concat([small(table, name) for name, table in tables.items()])
    report = format_report(tables["free"], tables["greedy"]) | {"set": set_report(rows)}
    return Outcome(report, facts, model, tokenizer, {"answers": answers}, log_rows=0)


@cache
def questions() -> list[Task]:
    """50 test questions of each depth, the same for every run."""
    return dial_tasks(50 * MAX_DEPTH, seed=22, depths=range(1, MAX_DEPTH + 1), distinct=True)


def measure(policy: Policy, seed: int) -> dict[str, list[Rollout]]:
    """What a policy does as it likes, and in each format, greedily and sampled."""
    free = ask(policy, questions(), temperature=1.0, seed=seed)
    forced = {
        name: [
            rollout
            for format in ReasoningFormat
            for rollout in ask(
                policy,
                questions(),
                prefix=format.prefix,
                mode=format.value,
                temperature=temperature,
                seed=seed,
            )
        ]
        for name, temperature in {"greedy": 0.0, "sampled": 1.0}.items()
    }
    return {"free": free, **forced}


def true_throughout(question: str, format: str, text: str) -> bool:
    """Whether every line of a response is true: in the dial world that is the gold text and no other."""
    return text.strip() == gold_response(parse_question(question), ReasoningFormat(format))


def set_report(rows: Sequence[Mapping[str, str]]) -> dict[str, list[int]]:
    """What a set holds, by tier and format: rows, and how many of them are true throughout."""
    table = pd.DataFrame(rows)
    asked = table["prompt"].str.extract(r"Human: (.*)\nAssistant:", expand=False)
    columns = zip(asked, table["format"], table["completion"], strict=True)
    table["true"] = [true_throughout(*row) for row in columns]
    cells = table.groupby(["tier", "format"])["true"].agg(["size", "sum"])
    return {"-".join(cell): [int(n), int(true)] for cell, (n, true) in cells.iterrows()}


def small(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """What is kept of each answer; its question is its place among `questions`."""
    places = [place % len(questions()) for place in range(len(table))]
    asked = [questions()[place].question for place in places]
    formats = table["format"].where(table["used"] != "invalid")
    true = [
        format == format and true_throughout(question, format, text)
        for question, format, text in zip(asked, formats, table["text"], strict=True)
    ]
    kept = table[["mode", "used", "correct", "tokens"]].astype({"correct": bool, "tokens": "int16"})
    return kept.assign(set=name, question=pd.Series(places, index=kept.index, dtype="int16"), true=true)


def read_answers(folder: Path) -> pd.DataFrame:
    """An answer of a shipped run a row: method, seed, set, question, id, depth, mode, used, correct, true."""
    found = [
        pd.read_parquet(path).assign(method=path.parts[-3], seed=int(path.parts[-2].removeprefix("seed_")))
        for path in sorted(folder.glob("*/seed_*/answers.parquet"))
    ]
    known = pd.DataFrame([(task.id, task.depth) for task in questions()], columns=["id", "depth"])
    return pd.concat(found, ignore_index=True).join(known, on="question")


def read_summaries(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The summaries of the shipped runs, by method."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*/seed_*/summary.json")):
        found.setdefault(path.parts[-3], []).append(read_json(path))
    return found
