"""Each policy asked in every way, five seeds: the runs behind notebook 04.

A run keeps its answers, a row each: `question` (its number in `test_questions`), `depth`, `mode`, `sample`,
`used` (a format or "invalid"), `answer`, `correct`, `tokens`. `lib.studies.arm_tables` reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lib.dial import UNTAGGED_PREFIX, read_untagged
from lib.engines.ask import ask, read_tagged
from lib.engines.base import Sampling
from lib.formats import ReasoningFormat, parse_response
from lib.policies.load import load_policy
from lib.runs import Run, runs_folder
from lib.sandbox import run_python
from lib.studies.arm_tables import mode_summary
from lib.studies.budgets import cut_and_close
from lib.studies.depths import question_sets
from lib.studies.records import Outcome
from lib.studies.shared import split_simulated_output
from lib.tasks import Rollout, Task, rollout_table
from lib.verify import is_correct

SHIPPED = {"base": "dial-base", "sft": "dial-sft"}  # the others are what notebook 03's runs left
BUDGETS = (4, 12, 24, 40, 64, 96, 128)
VOTES = 8
TEMPERATURE = 0.7  # as ARM evaluates
PROGRAMS = 150  # of the forced code responses, to run
WORDS = {"mode": "category", "used": "category", "answer": "category"}
NUMBERS = {"question": "int16", "depth": "int8", "sample": "int8", "tokens": "int16"}
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def test_questions() -> list[Task]:
    """The questions of all runs: the first half of those that notebook 03 tests on."""
    return question_sets()["balanced"][:600]


def inference_modes(method: str, seed: int, run: Run) -> Outcome:
    """A shipped policy ("base", "sft") or the one that notebook 03's run of this name and seed left."""
    trained = runs_folder() / "reference" / "03_ada_grpo" / method / f"seed_{seed}" / "checkpoint" / "result"
    policy, tasks = load_policy(SHIPPED.get(method) or trained), test_questions()
    rollouts = ask_in_every_way(policy, tasks, seed=seed, untagged=method == "base")
    run.keep_rollouts("modes", rollouts)
    answers = compact(rollouts, tasks)
    facts = {"policy": SHIPPED.get(method, f"03_ada_grpo/{method}/seed_{seed}"), "temperature": TEMPERATURE}
    facts["questions"] = len(tasks)
    return Outcome(mode_summary(answers), facts, *policy, tables={"answers": answers}, log_rows=0)


def ask_in_every_way(
    policy: Loaded, tasks: Sequence[Task], *, seed: int, untagged: bool = False
) -> list[Rollout]:
    """Eight adaptive responses, one in each format, programs run, and the first response cut at each budget.

    `untagged` is for the base: its formats are styles, forced by their first words, and nothing is cut.
    """
    reader = read_untagged if untagged else read_tagged
    asked = partial(ask, policy, read=reader, temperature=TEMPERATURE, seed=seed)
    adaptive = asked([task for task in tasks for _ in range(VOTES)])
    rollouts = list(adaptive)
    for format in ReasoningFormat:
        prefix = UNTAGGED_PREFIX[format] if untagged else format.prefix
        rollouts += asked(tasks, prefix=prefix, mode=format.value)
    programs = [rollout for rollout in rollouts if rollout.mode == ReasoningFormat.CODE][:PROGRAMS]
    rollouts += [executed(task, rollout) for task, rollout in zip(tasks, programs, strict=False)]
    sampling = Sampling(TEMPERATURE, seed=seed)
    for budget in () if untagged else BUDGETS:
        rollouts += cut_and_close(policy, tasks, adaptive[::VOTES], budget, sampling)
    return rollouts


def executed(task: Task, rollout: Rollout) -> Rollout:
    """The rollout with the answer that its program computes when it is run; where it fails, as it is."""
    tagged = parse_response(rollout.text)
    written = tagged.rationale if tagged.is_valid else rollout.text.rpartition("\n")[0]
    value = run_python(split_simulated_output(written)[0], timeout=5.0).value
    if value is None:
        return replace(rollout, mode="executed")
    right = is_correct(str(value), task.answer, task.kind)
    return replace(rollout, mode="executed", answer=str(value), correct=right)


def compact(rollouts: Sequence[Rollout], tasks: Sequence[Task]) -> pd.DataFrame:
    """The rows of a run's answers, in types that take little room.

    A question comes back in other colours under the same id, so it goes by its place: the rollouts of a mode
    are in the order of the tasks, those of one task side by side.
    """
    table = rollout_table(rollouts, tasks)
    place, count = table.groupby("mode").cumcount(), table["mode"].map({"adaptive": VOTES}).fillna(1)
    table["question"], table["sample"] = place // count, place % count
    names = ["question", "depth", "mode", "sample", "used", "answer", "correct", "tokens"]
    return table.sort_values(["mode", "sample", "question"], kind="stable")[names].astype(WORDS | NUMBERS)
