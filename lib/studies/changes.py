"""Notebook 03's variants: what each changed, what the story says of it, and what came out.

The ranges are ours. They were set as wide as the words allow, when the two methods, "hard questions alone"
and "no decay" were known; STAYS last, with every run known (its lines lie far outside of it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from lib.studies.format_choice import balanced, made, seeds, shares, text
from lib.studies.paired import Interval, bootstrap_mean

DRAWS = 500  # of a bootstrap
COLLAPSED, SHARED, ABSENT = (0.9, 1.0), (0.1, 0.45), (0.0, 0.05)  # of long CoT on easy questions
THREE_SHARE = (0.2, 0.5)
STAYS = (0.0, 0.2)  # of what moved between formats on easy questions


@dataclass(frozen=True)
class Change:
    """A variant of the training: what was done, what the story says, and the range that this means."""

    done: str
    story: str
    allowed: tuple[float, float]
    judged: str = "long"  # or "moved", as in `effects`


CHANGES: dict[str, Change] = {
    "grpo": Change("GRPO", "hard questions push, nothing holds: collapse", COLLAPSED),
    "grpo_hard_only": Change("GRPO, hard questions alone", "no easy group is needed: collapse", COLLAPSED),
    "grpo_easy_only": Change(
        "GRPO, easy questions alone", "nothing pushes: the choice stays", STAYS, "moved"
    ),
    "grpo_easy_only_shuffled": Change(
        "the same, rewards shuffled", "no format earns more: the choice stays", STAYS, "moved"
    ),
    "grpo_beta_0.04": Change("GRPO with KL, beta 0.04", "a pull to the start, too weak: collapse", COLLAPSED),
    "ada_grpo": Change("Ada-GRPO", "easy groups speak: all right formats share", SHARED),
    "hard_only": Change("Ada-GRPO, hard questions alone", "no easy group to speak: collapse", COLLAPSED),
    "shuffled_scale": Change("scales shuffled in the group", "noise does not hold: collapse", COLLAPSED),
    "no_decay": Change("no decay", "it cancels in all-right groups: as Ada-GRPO", SHARED),
    "constant_rate": Change("no cooldown of the rate", "the choice as with Ada-GRPO", SHARED),
    "scaled_wrong": Change("wrong ones earn -1, scaled too", "easy ones are right: as Ada-GRPO", SHARED),
    "without_direct": Change("direct earns nothing", "the other three share", THREE_SHARE),
    "without_short_cot": Change("short CoT earns nothing", "the other three share", THREE_SHARE),
    "without_code": Change("code earns nothing", "the other three share", THREE_SHARE),
    "without_long_cot": Change("long CoT earns nothing", "long CoT goes", ABSENT),
}


def moved(answers: pd.DataFrame, start: pd.DataFrame) -> Interval:
    """The part of the responses that changed format since the start: mean, lowest, highest of the seeds.

    Half the sum over formats, and invalid, of how far each share is from that at the start.
    """
    before = shares(start).iloc[0]
    parts = [(shares(run).iloc[0] - before).abs().sum() / 2 for _, run in answers.groupby("seed")]
    return sum(parts) / len(parts), min(parts), max(parts)


def effects(methods: Sequence[str] = tuple(CHANGES)) -> pd.DataFrame:
    """What each change did: a row per variant that is made, with intervals as (mean, low, high).

    "long" and "moved" are of easy questions.
    """
    start, rows = balanced("sft"), {}
    for method in made(methods):
        answers = balanced(method)
        easy, hard = (answers[answers["tier"] == tier] for tier in ("easy", "hard"))
        rows[method] = {
            "long": bootstrap_mean(easy, "long", draws=DRAWS),
            "moved": moved(easy, start[start["tier"] == "easy"]),
            "accuracy": bootstrap_mean(answers, "correct", draws=DRAWS),
            "hard": bootstrap_mean(hard, "correct", draws=DRAWS),
            "seeds": seeds(answers),
        }
    return pd.DataFrame(rows).T


def effects_table(found: pd.DataFrame) -> pd.DataFrame:
    """`effects` in words and numbers, one line each; the story held where its range has the mean."""
    rows = []
    for method, row in found.iterrows():
        change = CHANGES[method]
        low, high = change.allowed
        rows.append(
            {
                "what was done": change.done,
                "the story says": change.story,
                "long CoT on easy": text(row["long"], 2),
                "changed format": text(row["moved"], 2),
                "so it is": "yes" if low <= row[change.judged][0] <= high else "NO",
                "accuracy": text(row["accuracy"]),
                "on hard": text(row["hard"], 2),
                "seeds": row["seeds"],
            }
        )
    return pd.DataFrame(rows).set_index("what was done")
