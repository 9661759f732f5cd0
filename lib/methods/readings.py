"""How responses are read: which mode one opens in, how to make it open so, and is it right."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from lib.formats import ReasoningFormat, detect_format, parse_response_like_arm
from lib.methods.base import MethodConfig
from lib.thinking import NOTHINKING, THINKING, ModeTokens, is_solution_right
from lib.verify import Rules, is_response_correct

SKIPS, THINKS, THINKS_ANYHOW = NOTHINKING, THINKING, "thinking_any_start"


class Opening(NamedTuple):
    """Tokens that a response is made to begin with, and tokens that must not come next."""

    ids: list[int]
    never: list[int]


class FormatReading:
    """The four tagged formats: a response is in the format that its tag says, right by `config.rules`."""

    modes: tuple[str | None, ...] = (*(format.value for format in ReasoningFormat), None)
    split: tuple[str, ...] = ()  # modes whose accuracy and tokens are logged apart
    watched: tuple[str, int] | None = None  # a metric, and the token whose first log-prob it is

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: MethodConfig):
        self.tokenizer, self.rules = tokenizer, config.rules

    def is_right(self, text: str, answer: str, kind: str) -> bool:
        return is_response_correct(text, answer, kind, self.rules)

    def mode(self, ids: Sequence[int], text: str) -> str | None:
        like_arm = self.rules == "arm_training"  # there a line break before the tag is no format
        found = parse_response_like_arm(text).format if like_arm else detect_format(text)
        return found and found.value

    def opening(self, mode: str) -> Opening:
        prefix = ReasoningFormat(mode).prefix
        return Opening(self.tokenizer(prefix, add_special_tokens=False).input_ids, [])

    def shares(self, mode: str | None, ids: Sequence[int]) -> dict[str, bool]:
        """What is logged of a response beside its accuracy and tokens."""
        return {f"format/{known or 'none'}_share": mode == known for known in self.modes}

    def check_prompt(self, ids: Sequence[int]) -> None:
        """Any prompt will do."""

    def columns(self, completion_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {}


class ThinkingReading:
    """Thinking or skipping it, after an open think tag: the first token says which."""

    modes: tuple[str | None, ...] = (SKIPS, THINKS)
    split: tuple[str, ...] = (THINKS, SKIPS)

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: MethodConfig):
        self.tokenizer, self.tokens = tokenizer, ModeTokens.find(tokenizer, start=config.thinking_start)
        self.watched: tuple[str, int] | None = ("log_p_nothinking", self.tokens.close)

    def is_right(self, text: str, answer: str, kind: str) -> bool:
        return is_solution_right(text, answer, kind)

    def mode(self, ids: Sequence[int], text: str) -> str | None:
        return SKIPS if self.tokens.is_nothinking(ids) else THINKS

    def opening(self, mode: str) -> Opening:
        close, start = self.tokens.close, self.tokens.start
        ways = {SKIPS: ([close], []), THINKS: ([start], []), THINKS_ANYHOW: ([], [close])}
        return Opening(*ways[mode])

    def shares(self, mode: str | None, ids: Sequence[int]) -> dict[str, bool]:
        usual = (self.tokens.close, self.tokens.start)
        return {"nothinking_ratio": mode == SKIPS, "other_start_ratio": ids[0] not in usual}

    def check_prompt(self, ids: Sequence[int]) -> None:
        self.tokens.check_prompt(self.tokenizer, ids)

    def columns(self, completion_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """What a loss may need of each response (N, T)."""
        return {"is_nothinking": completion_ids[:, 0] == self.tokens.close}


Reading = FormatReading | ThinkingReading
READINGS: dict[str, type[Reading]] = {"formats": FormatReading, "thinking": ThinkingReading}


def accuracy_reward(is_right: Callable[..., bool], rules: Rules = "strict") -> Callable[..., list[float]]:
    """1 for a right response and 0 for any other (ARM, equation 1), by `is_right(text, answer, kind)`.

    A reward function with TRL's signature; rows need the columns `answer` and `kind`. What other processes
    compare (LaTeX, and numbers by ARM's rules) is compared by up to 8 at once: each may take its whole time.
    """
    slow = {"latex"} if rules == "strict" else {"latex", "number"}

    def accuracy(
        completions: Sequence[Any], answer: Sequence[str], kind: Sequence[str], **others: Any
    ) -> list[float]:
        texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
        rows = zip(texts, answer, kind, strict=True)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            ask = map if slow.isdisjoint(kind) else pool.map
            return [float(right) for right in ask(lambda row: is_right(*row), rows)]

    return accuracy
