"""L1-Max (LCPO, arXiv 2503.04697): think for at most as many tokens as the prompt asks for."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch

from lib.methods.base import Group, Progress
from lib.methods.l1_exact import BASE, L1Exact


@dataclass(frozen=True, kw_only=True)
class L1Max(L1Exact):
    """L1-Max: a right answer earns the more, the more of its budget is left; a wrong one nothing.

    `slope` "paper" is clip(alpha * left + 1/2, 0, 1), "code" (1 + clip(alpha * left, -1, 1)) / 2.
    """

    name: ClassVar[str] = "l1_max"

    slope: Literal["paper", "code"] = "paper"

    def shape_group(self, group: Group, progress: Progress) -> torch.Tensor:
        priced = self.alpha * self.left(group)
        if self.slope == "code":
            return group.ok * (1 + priced.clamp(-1, 1)) / 2
        return group.ok * (priced + 0.5).clamp(0, 1)

    @classmethod
    def code(cls, base: str = BASE, **changes: Any) -> Self:
        """As the released reward function has it."""
        return cls(base=base, **{"slope": "code"} | changes)
