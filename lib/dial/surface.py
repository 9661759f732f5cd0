"""A response surface: all that a frozen LLM may be asked, with what each way to ask is worth."""

from __future__ import annotations

import torch

from lib.runs import digest


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

    @property
    def setting(self) -> str:
        """What tells this surface from others (`lib.checked.identity`)."""
        return digest([self.values, self.contexts])

    def expected(self, questions: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """The expected reward of actions (B,) on questions (B,)."""
        return self.values[self.contexts[questions], actions]

    def optimal(self, questions: torch.Tensor) -> torch.Tensor:
        """The best expected reward on questions (B,)."""
        return self.values[self.contexts[questions]].max(-1).values

    def __call__(self, questions: torch.Tensor, actions: torch.Tensor, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed + 2)
        return torch.bernoulli(self.expected(questions, actions), generator=generator)
