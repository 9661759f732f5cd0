"""Two baselines of AdaptThink that sample freely: GRPO with its bonus, and GRPO with a price on length."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from lib.checked import Range
from lib.methods.adaptthink import Thinking
from lib.methods.base import Group, Progress
from lib.methods.grpo import GroupRelative
from lib.methods.readings import SKIPS

SHOWN = {"accuracy": "accuracy", "tokens": "tokens/mean", "skips": "nothinking_ratio"}


@dataclass(frozen=True, kw_only=True)
class NoThinkingBonus(Thinking, GroupRelative):
    """GRPO with AdaptThink's reward: a bonus for every response that skips thinking."""

    name: ClassVar[str] = "grpo_nothinking"
    shown: ClassVar[Mapping[str, str]] = SHOWN

    delta: Annotated[float, Range(0, 1)] = 0.05

    def shape_group(self, group: Group, progress: Progress) -> torch.Tensor:
        return group.ok + self.delta * group.opens(SKIPS).to(group.ok)


@dataclass(frozen=True, kw_only=True)
class LengthReward(Thinking, GroupRelative):
    """GRPO where a right response loses `length_weight` times the share of the token budget that it uses."""

    name: ClassVar[str] = "grpo_length"
    shown: ClassVar[Mapping[str, str]] = SHOWN

    length_weight: Annotated[float, Range(0, 1)] = 0.2

    def shape_group(self, group: Group, progress: Progress) -> torch.Tensor:
        share = group.length.double() / self.max_completion_length
        return group.ok + (-self.length_weight * group.ok.double() * share).to(group.ok)
