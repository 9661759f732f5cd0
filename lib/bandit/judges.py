"""Rewards for AdaReasoner's replies: exact match, and the two judge models of paper and released code.

A judge has TRL's signature (prompts, completions, answer) -> one number in [0, 1] per completion.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lib.bandit.prompting import read_reply
from lib.verify import is_correct

REWARD_MODEL = "OpenAssistant/reward-model-deberta-v3-large-v2"  # the paper's
NLI_MODEL = "facebook/bart-large-mnli"  # the released code's


def exact_match(
    prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str], kind: Sequence[str], **_: Any
) -> list[float]:
    """1 where the reply's `Answer:` line equals the reference, 0 elsewhere (see `lib.verify.is_correct`)."""
    return [
        float(is_correct(read_reply(reply), reference, sort))
        for reply, reference, sort in zip(completions, answer, kind, strict=True)
    ]


class _Judge:
    """A sequence classifier by name or path, which scores pairs of texts in batches."""

    def __init__(self, name_or_path: str, *, batch_size: int = 16, max_length: int = 512):
        self.tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        self.model = AutoModelForSequenceClassification.from_pretrained(name_or_path).eval()
        if torch.accelerator.is_available():
            self.model = self.model.to(torch.accelerator.current_accelerator())
        self.batch_size, self.max_length = batch_size, max_length

    @torch.inference_mode()
    def _logits(self, pairs: Sequence[tuple[str, str]]) -> torch.Tensor:
        """Logits (N, labels); a pair that is too long loses the end of its longer text."""
        parts = []
        for first in range(0, len(pairs), self.batch_size):
            batch = self.tokenizer(
                *map(list, zip(*pairs[first : first + self.batch_size], strict=True)),
                return_tensors="pt",
                padding=True,
                truncation="longest_first",
                max_length=self.max_length,
            ).to(self.model.device)
            parts.append(self.model(**batch).logits.float().cpu())
        return torch.cat(parts)


class RewardModelJudge(_Judge):
    """The sigmoid of a reward model's one logit (paper, section 3).

    It reads the question, and a sentence that the reply gives the reference answer and is correct. The paper
    does not say how logits become rewards in [0, 1]; the sigmoid is our reading.
    """

    def __init__(self, name_or_path: str = REWARD_MODEL, **options: Any):
        super().__init__(name_or_path, **options)
        if self.model.config.num_labels != 1:
            raise ValueError(
                f"{name_or_path} has {self.model.config.num_labels} labels; a reward model has one"
            )

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str], **_: Any
    ) -> list[float]:
        pairs = [
            (
                prompt,
                f"The reply is: {reply}\nIt agrees with the reference answer {reference} and is correct.",
            )
            for prompt, reply, reference in zip(prompts, completions, answer, strict=True)
        ]
        return torch.sigmoid(self._logits(pairs)[:, 0]).tolist()


class NLIJudge(_Judge):
    """P(yes) of an entailment model, between "yes" and "no" as labels (released code)."""

    def __init__(self, name_or_path: str = NLI_MODEL, **options: Any):
        super().__init__(name_or_path, **options)
        labels = {label.lower(): number for number, label in self.model.config.id2label.items()}
        if "entailment" not in labels:
            raise ValueError(f"{name_or_path} has the labels {', '.join(labels)}; it needs entailment")
        self.entailment = labels["entailment"]

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str], **_: Any
    ) -> list[float]:
        premises = [
            f"Question: {prompt}\nCandidate: {reply}\nReference: {reference}\nDoes the candidate match?"
            for prompt, reply, reference in zip(prompts, completions, answer, strict=True)
        ]
        sides = [[(p, f"This example is {label}.") for p in premises] for label in ("yes", "no")]
        entailed = torch.stack([self._logits(pairs)[:, self.entailment] for pairs in sides])
        return torch.softmax(entailed, 0)[0].tolist()


def agreement(scores: Sequence[float], exact: Sequence[float], *, threshold: float = 0.5) -> dict[str, float]:
    """How well a judge follows exact match: share of equal verdicts, and the area under the ROC curve."""
    scored, right = torch.tensor(scores), torch.tensor(exact) > 0.5
    same = ((scored > threshold) == right).float().mean().item()
    both = bool(right.any()) and not bool(right.all())
    return {
        "agreement": same,
        "auc": float(roc_auc_score(right, scored)) if both else float("nan"),
        "judge_mean": scored.mean().item(),
        "exact_mean": right.float().mean().item(),
    }
