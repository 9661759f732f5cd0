"""Rewards for AdaReasoner's replies: exact match, and the paper's judge model.

A judge has TRL's signature (prompts, completions, answer) -> one number in [0, 1] per completion.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import pipeline

from lib.bandit.prompting import read_reply
from lib.verify import is_correct

REWARD_MODEL = "OpenAssistant/reward-model-deberta-v3-large-v2"  # the paper's


def exact_match(
    prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str], kind: Sequence[str], **_: Any
) -> list[float]:
    """1 where the reply's `Answer:` line equals the reference, 0 elsewhere (see `lib.verify.is_correct`)."""
    return [
        float(is_correct(read_reply(reply), reference, sort))
        for reply, reference, sort in zip(completions, answer, kind, strict=True)
    ]


class RewardModelJudge:
    """The sigmoid of a reward model's one logit (paper, section 3), from a classifier by name or path.

    It reads the question, and a sentence that the reply gives the reference answer and is correct; of a pair
    that is too long, the end of the longer text is cut. The paper does not say how logits become rewards in
    [0, 1]; the sigmoid is our reading.
    """

    def __init__(self, name_or_path: str = REWARD_MODEL, *, batch_size: int = 16):
        fitting = {"truncation": "longest_first", "max_length": 512}
        options = fitting | {"function_to_apply": "sigmoid", "batch_size": batch_size}
        self.scorer = pipeline("text-classification", model=name_or_path, **options)
        if (labels := self.scorer.model.config.num_labels) != 1:
            raise ValueError(f"{name_or_path} has {labels} labels; a reward model has one")

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str], **_: Any
    ) -> list[float]:
        verdict = "The reply is: {}\nIt agrees with the reference answer {} and is correct."
        pairs = [
            {"text": prompt, "text_pair": verdict.format(reply, reference)}
            for prompt, reply, reference in zip(prompts, completions, answer, strict=True)
        ]
        return [found["score"] for found in self.scorer(pairs)]
