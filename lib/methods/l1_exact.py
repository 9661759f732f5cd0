"""L1-Exact (LCPO, arXiv 2503.04697): think for as many tokens as the prompt asks for."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

import torch

from lib.checked import Range
from lib.methods.adaptthink import Thinking
from lib.methods.base import DIAL, Count, Group, Progress
from lib.methods.grpo import GroupRelative

BASE = "agentica-org/DeepScaleR-1.5B-Preview"
ASK = "{question} Think for {budget} tokens."


@dataclass(frozen=True, kw_only=True)
class L1Exact(Thinking, GroupRelative):
    """L1-Exact: a right answer less `alpha` for every token that the response is away from its budget.

    A row's `budget` is kept; without one it is drawn. All tokens of a response count.
    """

    name: ClassVar[str] = "l1_exact"
    needs: ClassVar[tuple[str, ...]] = (*Thinking.needs, "question")

    alpha: Annotated[float, Range(above=0, high=1)] = 3e-4  # per token
    shortest: Count = 100  # tokens, of a budget
    longest: Count = 4000
    batches: Count = 700
    learning_rate: Annotated[float, Range(above=0, high=1)] = 1e-6
    max_completion_length: Count = 4096

    def rewrite(self, row: dict[str, Any], rng: random.Random, progress: Progress) -> dict[str, Any]:
        """The question in the prompt asks for the budget."""
        budget = row.get("budget") or rng.randint(self.shortest, self.longest)
        before, question, after = row["prompt"].rpartition(row["question"])
        if not question:
            raise ValueError(f"the prompt does not hold its question {row['question'][:80]!r}")
        asked = ASK.format(question=question, budget=budget)
        return row | {"budget": budget, "prompt": f"{before}{asked}{after}"}

    def shape_group(self, group: Group, progress: Progress) -> torch.Tensor:
        return group.ok - self.alpha * self.left(group).abs()

    def left(self, group: Group) -> torch.Tensor:
        """What a response left of its budget, in tokens: (B, G)."""
        return group.column("budget") - group.length

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if self.shortest > self.longest:
            yield f"shortest must be at most longest, got {self.shortest} and {self.longest}"

    @classmethod
    def paper(cls, base: str = BASE, **changes: Any) -> Self:
        return cls(base=base, **changes)

    @classmethod
    def cpu(cls, base: str = "dial-sft", **changes: Any) -> Self:
        """For the dial world: four formats of 5 to 120 tokens to meet a budget with."""
        small = DIAL | {"prompts": 12, "num_generations": 8, "reading": "formats", "temperature": 1.0}
        return cls(base=base, **small | {"alpha": 0.01, "shortest": 8, "longest": 120} | changes)
