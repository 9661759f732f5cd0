"""Notebook 01: does strictness matter? SFT on what an exact and an erring teacher wrote, filtered or not.

The erring teacher is the base itself at temperature 1: it errs where its skill ends, and only there.
The careless one is the same at temperature 2: it errs everywhere. No set is balanced, all are of one size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib.dial.responses import gold_response
from lib.dial.tasks import dial_tasks, gold_rows
from lib.dial.world import MAX_DEPTH, parse_question, sample_questions
from lib.engines.ask import Policy, ask
from lib.formats import ReasoningFormat
from lib.measure.evaluation import format_report
from lib.methods.sft import SFTConfig, train_sft
from lib.policies.load import load_policy
from lib.runs import Run, read_json
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
    report, rollouts = measure((model, tokenizer), seed)
    for name, found in rollouts.items():
        run.keep_rollouts(name, found)
    return Outcome(report | {"set": set_report(rows)}, facts, model, tokenizer)


def true_throughout(question: str, format: str, text: str) -> bool:
    """Whether every line of a response is true: in the dial world that is the gold text and no other."""
    return text.strip() == gold_response(parse_question(question), ReasoningFormat(format))


def set_report(rows: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """What a set holds, by tier and format: rows, and how many of them are true throughout."""
    table = pd.DataFrame(rows)
    questions = table["prompt"].str.extract(r"Human: (.*)\nAssistant:", expand=False)
    columns = zip(questions, table["format"], table["completion"], strict=True)
    table["true"] = [true_throughout(*row) for row in columns]
    cells = table.groupby(["tier", "format"])["true"].agg(["size", "sum"])
    return {"-".join(cell): [int(n), int(true)] for cell, (n, true) in cells.iterrows()}


def measure(policy: Policy, seed: int) -> tuple[dict[str, Any], dict[str, list[Rollout]]]:
    """The staircase, greedy and sampled, and what the policy does as it likes, with the rollouts."""
    tasks = dial_tasks(50 * MAX_DEPTH, seed=22, depths=range(1, MAX_DEPTH + 1), distinct=True)
    free = ask(policy, tasks, temperature=1.0, seed=seed)
    greedy, sampled = (in_every_format(policy, tasks, t, seed) for t in (0.0, 1.0))
    report = format_report(rollout_table(free, tasks), rollout_table(greedy, tasks))
    depths = {task.id: task.depth for task in tasks}
    chosen = Counter((depths[r.task_id], r.format if r.answer else "invalid") for r in free)
    report["chosen_by_depth"] = {
        format.value: [chosen[depth, format.value] for depth in range(1, MAX_DEPTH + 1)]
        for format in ReasoningFormat
    }
    report |= {"greedy": by_question(greedy, tasks), "sampled": by_question(sampled, tasks)}
    return report, {"free": free, "greedy": greedy, "sampled": sampled}


def in_every_format(policy: Policy, tasks: Sequence[Task], temperature: float, seed: int) -> list[Rollout]:
    """Each task in each format; the mode is the format."""
    return [
        rollout
        for format in ReasoningFormat
        for rollout in ask(
            policy, tasks, prefix=format.prefix, mode=format.value, temperature=temperature, seed=seed
        )
    ]


def by_question(rollouts: Sequence[Rollout], tasks: Sequence[Task]) -> dict[str, str]:
    """A digit for each task, a text for each format: 0 wrong, 1 right, 2 right and true throughout."""
    asked = {task.id: task.question for task in tasks}
    digits: dict[str, list[str]] = {}
    for r in rollouts:
        digit = int(bool(r.correct)) * (1 + true_throughout(asked[r.task_id], r.mode, r.text))
        digits.setdefault(r.mode, []).append(str(digit))
    return {mode: "".join(found) for mode, found in digits.items()}


def read_digits(folder: Path, measured: str) -> np.ndarray:
    """What the shipped runs of a method did, (seeds, formats, depths, questions of a depth), as 0, 1 or 2."""
    found = [
        [list(map(int, digits[format.value])) for format in ReasoningFormat]
        for digits in (read_json(path)[measured] for path in sorted(folder.glob("seed_*/summary.json")))
    ]
    array = np.array(found)
    return array.reshape(*array.shape[:2], -1, MAX_DEPTH).swapaxes(2, 3)
