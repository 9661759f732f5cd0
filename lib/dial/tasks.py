"""Dial questions as tasks, and the rows of both training stages."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterable, Sequence
from typing import Any

from lib.dial.responses import gold_response
from lib.dial.world import Question, sample_questions
from lib.formats import ReasoningFormat
from lib.sources.loading import register
from lib.tasks import Task, sft_row, stage


def dial_task(question: Question) -> Task:
    """A dial question as a task; questions that differ only in colour have the same key."""
    return Task(
        id=f"{question.world}/{hashlib.sha256(question.key.encode()).hexdigest()[:16]}",
        question=question.text,
        answer=question.answer,
        kind="number",
        source=question.world,
        tier=question.tier,
        depth=question.depth,
        split=question.split,
    )


def dial_tasks(
    count: int, *, split: str = "test", seed: int, sft_share: float | None = None, **choice: Any
) -> list[Task]:
    """The loader of this world: `sample_questions` as tasks, with its options depths, world and distinct.

    With `sft_share` training questions are those for RL (`rl_questions`).
    """
    if split == "train" and sft_share is not None:
        questions = rl_questions(count, seed=seed, sft_share=sft_share, **choice)
    else:
        questions = sample_questions(count, seed=seed, split=split, **choice)
    return [dial_task(question) for question in questions]


register("dial", dial_tasks)


def gold_rows(questions: Iterable[Question], *, seed: int, sft_share: float = 1.0) -> list[dict[str, str]]:
    """The gold responses of dial questions in all formats, shuffled: exact, so they need no check.

    Questions that `stage` keeps for RL are left out.
    """
    rows = []
    for question in questions:
        example = dial_task(question)
        if stage(example.key, sft_share) == "sft":
            rows += [sft_row(example, format, gold_response(question, format)) for format in ReasoningFormat]
    random.Random(f"sft|{seed}").shuffle(rows)
    return rows


def rl_questions(
    count: int, *, seed: int, sft_share: float, depths: Sequence[int] | None = None
) -> list[Question]:
    """Dial questions for RL, balanced over tiers or taken from `depths`: none that `stage` gives to SFT."""
    drawn = sample_questions(math.ceil(2 * count / (1 - sft_share)), seed=seed, depths=depths)
    wanted = [q for q in drawn if stage(dial_task(q).key, sft_share) == "rl"]
    tiers = [[q for q in wanted if q.tier == tier] for tier in dict.fromkeys(q.tier for q in wanted)]
    return [question for row in zip(*tiers, strict=False) for question in row][:count]
