"""The configurations of a frozen LLM: instruction, temperature and number of steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

HEADS: tuple[Literal["instruction", "temperature", "steps"], ...] = ("instruction", "temperature", "steps")


class Action(NamedTuple):
    """One configuration of the frozen LLM."""

    instruction: str
    temperature: float
    steps: int


# The paper's ten strategies and ten emphases (appendix C, table 4), by meaning, in our own words.
STRATEGIES = (
    "Go through the problem in a clear order, one step after another.",
    "Give the analysis a firm structure and fill in each part with care.",
    "Look for how the ideas hang together, and spell out every link.",
    "Look at the matter from several sides and weigh other views.",
    "Be inventive: question what is usually taken for granted, and look for the unexpected.",
    "Be rigorous, and keep both the details and the whole in view.",
    "Notice what you assume, ask yourself whether it holds, and improve the argument.",
    "Explain each step so plainly that anyone can follow.",
    "Check the reasoning systematically for contradictions as you go.",
    "Finish with a summary of the main points and look once more whether the answer is complete.",
)
EMPHASES = (
    "Consider every way the question could be meant.",
    "Split the problem into small parts that fit together.",
    "Compare with similar cases that you know.",
    "Go over each step again so that nothing important is missed.",
    "Doubt the usual answer, but stay logical.",
    "Make sure that each premise is understood and used exactly.",
    "Mind the small details that are easily passed over.",
    "Use plain and simple words.",
    "Audit your own work and repair what does not agree.",
    "Hold the conclusion against known principles or facts.",
)


@dataclass(frozen=True)
class ActionSpace:
    """The configurations to choose from; the index counts steps fastest, then temperatures."""

    instructions: tuple[str, ...]
    temperatures: tuple[float, ...]
    steps: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("instructions", "temperatures", "steps"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must hold one or more different values, got {values}")

    @classmethod
    def paper(cls) -> ActionSpace:
        """100 instructions x 11 temperatures x 8 numbers of steps (paper, appendix C)."""
        pairs = tuple(f"{strategy} {emphasis}" for strategy in STRATEGIES for emphasis in EMPHASES)
        return cls(pairs, tuple(k / 10 for k in range(11)), tuple(range(3, 11)))

    @classmethod
    def released_code(cls) -> ActionSpace:
        """100 x 10 x 7: the released code starts at temperature 0.1 and ends at nine steps."""
        paper = cls.paper()
        return cls(paper.instructions, paper.temperatures[1:], paper.steps[:-1])

    @property
    def sizes(self) -> dict[str, int]:
        """How many values each head chooses from."""
        return dict(
            zip(HEADS, (len(self.instructions), len(self.temperatures), len(self.steps)), strict=True)
        )

    @property
    def size(self) -> int:
        return math.prod(self.sizes.values())

    def decode(self, index: int) -> Action:
        """The action with this index."""
        if not 0 <= index < self.size:
            raise ValueError(f"index must be 0 to {self.size - 1}, got {index}")
        rest, step = divmod(int(index), len(self.steps))
        instruction, temperature = divmod(rest, len(self.temperatures))
        return Action(self.instructions[instruction], self.temperatures[temperature], self.steps[step])

    def encode(self, action: Action | tuple[str, float, int]) -> int:
        """The index of this action; ValueError names the part that is not in the space."""
        index = 0
        parts = zip(HEADS, (self.instructions, self.temperatures, self.steps), action, strict=True)
        for name, values, value in parts:
            if value not in values:
                raise ValueError(f"{name} {value!r} is not in this action space; there are {values}")
            index = index * len(values) + values.index(value)
        return index

    def join(self, choices: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Indices per head, (B,) each, as indices of actions (B,)."""
        sizes = self.sizes
        rest = choices["instruction"] * sizes["temperature"] + choices["temperature"]
        return rest * sizes["steps"] + choices["steps"]

    def split(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        """Indices of actions (B,) as indices per head, (B,) each."""
        return dict(zip(HEADS, torch.unravel_index(indices, tuple(self.sizes.values())), strict=True))
