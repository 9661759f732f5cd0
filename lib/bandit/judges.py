"""Rewards for AdaReasoner's replies: exact match, and the paper's judge model.

A judge has TRL's signature (prompts, completions, answer) -> one number in [0, 1] per completion.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

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

    It reads the question, and a sentence that the reply gives the reference answer and is correct. The paper
    does not say how logits become rewards in [0, 1]; the sigmoid is our reading.
    """

    def __init__(self, name_or_path: str = REWARD_MODEL, *, batch_size: int = 16, max_length: int = 512):
        self.tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        self.model = AutoModelForSequenceClassification.from_pretrained(name_or_path).eval()
        if (labels := self.model.config.num_labels) != 1:
            raise ValueError(f"{name_or_path} has {labels} labels; a reward model has one")
        if torch.accelerator.is_available():
            self.model = self.model.to(torch.accelerator.current_accelerator())
        self.batch_size, self.max_length = batch_size, max_length

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str], **_: Any
    ) -> list[float]:
        verdicts = [
            f"The reply is: {reply}\nIt agrees with the reference answer {reference} and is correct."
            for reply, reference in zip(completions, answer, strict=True)
        ]
        parts = [
            self._logits(prompts[first : first + self.batch_size], verdicts[first : first + self.batch_size])
            for first in range(0, len(verdicts), self.batch_size)
        ]
        return torch.sigmoid(torch.cat(parts)).tolist()

    @torch.inference_mode()
    def _logits(self, prompts: Sequence[str], verdicts: Sequence[str]) -> torch.Tensor:
        """The logit of each pair, (N,); a pair that is too long loses the end of its longer text."""
        batch = self.tokenizer(
            list(prompts),
            list(verdicts),
            return_tensors="pt",
            padding=True,
            truncation="longest_first",
            max_length=self.max_length,
        ).to(self.model.device)
        return self.model(**batch).logits[:, 0].float().cpu()
