"""What answers a decision with a reward: a frozen LLM."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from lib.bandit.actions import Action, ActionSpace
from lib.bandit.llms import CUT, LLM, Request
from lib.checked import identity
from lib.runs import digest


class Environment(Protocol):
    """Asks the frozen LLM: questions (B,) and actions (B,) as indices -> rewards (B,), NaN for no answer.

    What `identity` finds of it, as its `setting`, decides the rewards: another is another training.
    """

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

    @property
    def setting(self) -> dict[str, Any]:
        """All that decides the rewards: LLM and reward, and digests of questions, actions and prompts."""
        actions = [self.action_space.decode(index) for index in range(self.action_space.size)]
        prompts = [self.render(self.questions[0], action) for action in actions]
        prompts += [self.render(question, actions[0]) for question in self.questions]
        shared = {"llm": identity(self.llm), "reward": identity(self.reward), "samples": self.samples}
        kept = {"questions": list(map(repr, self.questions)), "actions": actions, "prompts": prompts}
        return shared | {name: digest(value) for name, value in kept.items()}

    def __call__(self, questions: torch.Tensor, actions: torch.Tensor, seed: int) -> torch.Tensor:
        known: dict[str | None, float] = {None: math.nan, CUT: 0.0}
        asked = [self.questions[index] for index in questions.tolist()]
        pairs = zip(asked, self.ask(questions, actions, seed), strict=True)
        return torch.tensor([self.reward(q, r) if r else known[r] for q, r in pairs])

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
