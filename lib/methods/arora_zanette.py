"""Arora and Zanette (arXiv 2502.04463): among right answers, pay those that are short for their question."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

import torch

from lib.checked import Range
from lib.methods.adaptthink import Thinking
from lib.methods.base import DIAL, Group, Progress, every_token


def length_price(ok: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """How long a response is among the right ones of its group, from 0 to 1: (B, G), (B, G) -> (B, G).

    sigmoid((L - mean) / deviation) of the right ones, with the population's deviation; 1/2 where it is 0.
    """
    count = ok.sum(1, keepdim=True).clamp(min=1)
    away = length - (ok * length).sum(1, keepdim=True) / count
    deviation = ((ok * away**2).sum(1, keepdim=True) / count).sqrt()
    return torch.where(deviation > 0, away / deviation.clamp(min=1e-6), 0).sigmoid()


def leave_one_out(rewards: torch.Tensor) -> torch.Tensor:
    """A reward less the mean of the others in its group: (B, G) -> (B, G)."""
    size = rewards.shape[1]
    return (rewards - rewards.mean(1, keepdim=True)) * size / (size - 1)


@dataclass(frozen=True, kw_only=True)
class AroraZanette(Thinking):
    """A right answer earns 1 - alpha * `length_price`; RLOO, so nothing divides by a deviation."""

    name: ClassVar[str] = "arora_zanette"

    alpha: Annotated[float, Range(0, below=1)] = 0.1  # of the released script; the paper sweeps 0 to 0.4

    def shape_group(self, group: Group, progress: Progress) -> torch.Tensor:
        return group.ok * (1 - self.alpha * length_price(group.ok, group.length))

    def advantage(self, rewards: torch.Tensor, group: Group, progress: Progress) -> torch.Tensor:
        return every_token(leave_one_out(rewards))

    @classmethod
    def cpu(cls, base: str = "dial-sft", **changes: Any) -> Self:
        """For the dial world: four formats to choose the shortest right one from."""
        small = DIAL | {"prompts": 12, "num_generations": 8, "reading": "formats", "temperature": 1.0}
        return cls(base=base, **small | changes)
