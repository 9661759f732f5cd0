"""The configurations of a frozen LLM: instruction, temperature and number of steps."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Literal, NamedTuple, Self

import torch
import yaml

from lib.runs import ROOT

HEADS: tuple[Literal["instruction", "temperature", "steps"], ...] = ("instruction", "temperature", "steps")


class Action(NamedTuple):
    """One configuration of the frozen LLM."""

    instruction: str
    temperature: float
    steps: int


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
    def paper(cls) -> Self:
        """100 instructions x 11 temperatures x 8 numbers of steps (paper, appendix C)."""
        parts = yaml.safe_load((ROOT / "data" / "instructions.yaml").read_text(encoding="utf-8"))
        pairs = tuple(" ".join(pair) for pair in product(parts["strategies"], parts["emphases"]))
        return cls(pairs, tuple(k / 10 for k in range(11)), tuple(range(3, 11)))

    @classmethod
    def released_code(cls) -> Self:
        """100 x 10 x 7: the released code starts at temperature 0.1 and ends at nine steps."""
        paper = cls.paper()
        return cls(paper.instructions, paper.temperatures[1:], paper.steps[:-1])

    @property
    def sizes(self) -> dict[str, int]:
        """How many values each head chooses from."""
        parts = (self.instructions, self.temperatures, self.steps)
        return dict(zip(HEADS, map(len, parts), strict=True))

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
