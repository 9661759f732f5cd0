"""What notebook 05's policies answer, kept answer by answer, so that runs pair by question.

The questions are notebook 03's (`lib.studies.depths`), the same for every method and seed. Where nothing is
trained, validation questions are asked too: there routers are fitted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import pandas as pd

from lib.dial import dial_tasks
from lib.engines.ask import Policy, ask
from lib.measure.evaluation import summary
from lib.runs import Run
from lib.studies.depths import DRAW, numbered, question_sets, read_kept, small
from lib.studies.records import RUNS
from lib.tasks import Rollout, Task, rollout_table
from lib.thinking import CLOSE, NOTHINKING, THINKING, read_thinking, thinking_tasks

PLACE = RUNS / "05_adaptthink"
START = "Okay"  # how dial-thinker begins a thought
OTHER = "other"  # a response that begins with neither word
# Words that say that one is thinking on. The paper names the first two; its list is not published.
IMPLICIT = re.compile(r"\b(wait|alternatively|hmm|let me|let's check|double-check|on second thought)\b", re.I)


@cache
def validation_questions() -> list[Task]:
    """600 questions balanced over the tiers, for routers and recipes to be chosen on."""
    return dial_tasks(600, split="validation", seed=DRAW)


# ---- ask ---------------------------------------------------------------------------------------


def ask_sets(
    policy: Policy, sets: dict[str, list[Task]], *, seed: int, prefix: str = "", run: Run | None = None
) -> dict[str, pd.DataFrame]:
    """The rollouts of each set as a table, at temperature 1; `used` is the first word's mode."""
    tokenizer = policy[1] if isinstance(policy, tuple) else policy.tokenizer
    tables = {}
    for name, tasks in sets.items():
        rollouts = ask(
            policy,
            thinking_tasks(tasks, tokenizer),
            prefix=prefix,
            read=read_thinking,
            temperature=1.0,
            seed=seed,
        )
        if run:
            run.keep_rollouts(name, rollouts)
        tables[name] = rollout_table(rollouts, tasks).assign(used=[used(one) for one in rollouts])
    return tables


def used(rollout: Rollout, start: str = START) -> str:
    """How a response begins: it skips the thought, begins it as usual, or with another word."""
    if rollout.format == NOTHINKING:
        return NOTHINKING
    return THINKING if rollout.text.startswith(start) else OTHER


def thinks_implicitly(response: str) -> bool:
    """Whether a solution goes on thinking after `</think>` (section 4.4 of the paper)."""
    return bool(IMPLICIT.search(response.partition(CLOSE)[2]))


def kept(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """What is kept of the answers, a row each."""
    rows = [
        small(table, set=name).assign(implicit=table["text"].map(thinks_implicitly))
        for name, table in tables.items()
    ]
    return pd.concat(rows)


def ask_freely(
    policy: Policy, *, seed: int, prefix: str = "", untrained: bool = False, run: Run | None = None
) -> tuple[dict[str, Any], pd.DataFrame]:
    """The numbers of summary.json and the table of answers; `prefix` forces a mode."""
    sets = question_sets() | ({"validation": validation_questions()} if untrained else {})
    tables = ask_sets(policy, sets, seed=seed, prefix=prefix, run=run)
    numbers = {name: summary(table) for name, table in tables.items()}
    depths = numbers["balanced"].pop("depths") | numbers["deeper"]["depths"]
    return numbers["balanced"] | {"depths": depths, "additions": numbers["additions"]}, kept(tables)


def ask_skipping(policy: Policy, *, seed: int) -> tuple[dict[str, Any], pd.DataFrame]:
    """Accuracy by depth of the balanced questions, each answered without a thought; and the answers."""
    tables = ask_sets(policy, {"balanced": question_sets()["balanced"]}, seed=seed, prefix=CLOSE)
    rates = tables["balanced"].groupby("depth")["correct"].mean()
    return {"accuracy_by_depth": rates.tolist()}, kept(tables)


# ---- read --------------------------------------------------------------------------------------


def read_answers(*methods: str) -> pd.DataFrame:
    """A row per answer of shipped runs: method, seed, set, question, id, tier, depth, used, correct, tokens,
    implicit.

    `used` is "thinking", "nothinking" or "other"; `question` counts within its set.
    """
    return _read(methods, "answers")


def read_forced(*methods: str) -> pd.DataFrame:
    """The same of answers to the balanced questions without a thought, whatever the policy would do."""
    return _read(methods, "forced")


def _read(methods: Sequence[str], name: str) -> pd.DataFrame:
    questions = numbered(question_sets() | {"validation": validation_questions()})
    return read_kept(PLACE, methods, name, questions, ["set", "question"])


def balanced(*methods: str) -> pd.DataFrame:
    """The answers of shipped runs to the 1,200 test questions, and whether each skips or begins otherwise."""
    answers = read_answers(*methods)
    answers = answers[answers["set"] == "balanced"]
    return answers.assign(skips=answers["used"] == NOTHINKING, other=answers["used"] == OTHER)


def made(methods: Sequence[str], records: str = "answers") -> list[str]:
    """Those of the methods whose runs are in the tree."""
    return [method for method in methods if list((PLACE / method).glob(f"seed_*/{records}.parquet"))]
