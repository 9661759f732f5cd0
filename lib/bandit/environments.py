"""What answers a decision with a reward: a frozen LLM, or a surface on which all is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from lib.bandit.actions import Action, ActionSpace
from lib.bandit.llms import LLM, Request


class Environment(Protocol):
    """Asks the frozen LLM: questions (B,) and actions (B,) as indices -> rewards (B,), NaN for no answer."""

    def __call__(self, questions: torch.Tensor, actions: torch.Tensor, seed: int) -> torch.Tensor: ...


@dataclass(frozen=True)
class LLMEnvironment:
    """Rewards from a frozen LLM: `render(question, action)` is the prompt, `reward(question, reply)` scores.

    Reply None is no answer: its reward is NaN and is not learnt from. `samples` is how many different replies
    a question and an action have, so that an LLM with a cache need not answer them again. None: always new.
    """

    llm: LLM
    questions: Sequence[Any]
    action_space: ActionSpace
    render: Callable[[Any, Action], str]
    reward: Callable[[Any, str], float]
    samples: int | None = None

    def __call__(self, questions: torch.Tensor, actions: torch.Tensor, seed: int) -> torch.Tensor:
        replies = self.ask(questions, actions, seed)
        return torch.tensor(
            [
                math.nan if reply is None else self.reward(self.questions[index], reply)
                for index, reply in zip(questions.tolist(), replies, strict=True)
            ]
        )

    def ask(self, questions: torch.Tensor, actions: torch.Tensor, seed: int) -> list[str | None]:
        """The replies alone, None where there is none."""
        chosen = [self.action_space.decode(action) for action in actions.tolist()]
        asked = [self.questions[index] for index in questions.tolist()]
        requests = []
        for place, (question, action) in enumerate(zip(asked, chosen, strict=True)):
            sample = 0 if action.temperature == 0 else seed * len(asked) + place
            if self.samples is not None:
                sample %= self.samples
            requests.append(Request(self.render(question, action), action.temperature, sample))
        return self.llm.ask(requests)


class Surface:
    """A response surface: the expected reward of every action in every context is known, so is regret.

    values: (C, A) in [0, 1]; contexts: (N,), the context of each question. Called, it draws rewards 0 or 1.
    """

    def __init__(self, values: torch.Tensor, contexts: torch.Tensor):
        if values.min() < 0 or values.max() > 1:
            raise ValueError(f"values must lie in [0, 1], got {values.min():.2f} to {values.max():.2f}")
        if contexts.max() >= len(values):
            raise ValueError(f"contexts name row {contexts.max()}, but values has {len(values)} rows")
        self.values, self.contexts = values, contexts

    def expected(self, questions: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """The expected reward of actions (B,) on questions (B,)."""
        return self.values[self.contexts[questions], actions]

    def optimal(self, questions: torch.Tensor) -> torch.Tensor:
        """The best expected reward on questions (B,)."""
        return self.values[self.contexts[questions]].max(-1).values

    def __call__(self, questions: torch.Tensor, actions: torch.Tensor, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed + 2)
        return torch.bernoulli(self.expected(questions, actions), generator=generator)
