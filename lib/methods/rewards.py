"""Reward functions with TRL's signature: keyword arguments in, one number per completion out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lib.formats import ReasoningFormat, detect_format
from lib.verify import Rules, is_response_correct


def accuracy_reward(
    rules: Rules = "strict", *, without: ReasoningFormat | None = None
) -> Callable[..., list[float]]:
    """1 for a right response and 0 for any other (ARM, equation 1), by the rules of `lib.verify`.

    "strict" and "arm_training" ask for a well-formed response too; "arm_evaluation" looks at the answer only,
    as the equation in the paper does. A response in the format `without` earns nothing, which removes that
    format. The rows must have the columns `answer` and `kind`.
    """

    def accuracy(
        completions: Sequence[str], answer: Sequence[str], kind: Sequence[str], **others: Any
    ) -> list[float]:
        return [
            float(
                is_response_correct(text, reference, sort, rules)
                and (without is None or detect_format(text) != without)
            )
            for text, reference, sort in zip(completions, answer, kind, strict=True)
        ]

    return accuracy
