"""What answers a decision with a reward: a frozen LLM."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from lib.bandit.actions import Action, ActionSpace
from lib.bandit.llms import CUT, LLM, Request


class Environment(Protocol):
    """Asks the frozen LLM: questions (B,) and actions (B,) as indices -> rewards (B,), NaN for no answer."""

    def __call__(self, questions: torch.Tensor, actions: torch.Tensor, seed: int) -> torch.Tensor: ...


@dataclass(frozen=True)
class LLMEnvironment:
    """Rewards from a frozen LLM: `render(question, action)` is the prompt, `reward(question, reply)` scores.

    A reply that was cut earns 0: else long configurations would be judged by their short replies alone. None
    is no reply: its reward is NaN and is not learnt from. `samples` is how many different replies
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
        pairs = zip(questions.tolist(), replies, strict=True)
        return torch.tensor([self._rewarded(self.questions[index], reply) for index, reply in pairs])

    def _rewarded(self, question: Any, reply: str | None) -> float:
        if reply is None:
            return math.nan
        return 0.0 if reply == CUT else self.reward(question, reply)

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
