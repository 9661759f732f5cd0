"""A reading's judgement as a reward function with TRL's signature: one number per completion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def accuracy_reward(is_right: Callable[[str, str, str], bool]) -> Callable[..., list[float]]:
    """1 for a right response and 0 for any other (ARM, equation 1), by `is_right(text, answer, kind)`.

    The rows must have the columns `answer` and `kind`. Completions are texts or chats.
    """

    def accuracy(
        completions: Sequence[Any], answer: Sequence[str], kind: Sequence[str], **others: Any
    ) -> list[float]:
        texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
        return [float(is_right(*row)) for row in zip(texts, answer, kind, strict=True)]

    return accuracy
