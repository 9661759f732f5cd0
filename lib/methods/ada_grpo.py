"""Ada-GRPO (ARM, section 4.2): GRPO with rewards scaled up for formats that are rare in their group."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch

from lib.formats import ReasoningFormat
from lib.methods.base import Group, Progress
from lib.methods.grpo import GRPO

Formats = Sequence[Sequence[ReasoningFormat | str | None]]


def format_counts(formats: Formats) -> torch.Tensor:
    """F(o_i): how many responses of a group share the format of response i: B lists of G -> (B, G).

    None, a response without a format, counts as one more format, as in ARM's code.
    """
    sizes = {len(group) for group in formats}
    if len(sizes) != 1:
        raise ValueError(f"all groups must have the same size G, got groups of {sorted(sizes)}")
    counts = zip(formats, map(Counter, formats), strict=True)
    return torch.tensor([[count[format] for format in group] for group, count in counts])


def diversity_scale(
    counts: torch.Tensor, group_size: int, step: float, total_steps: float, *, decay: bool = True
) -> torch.Tensor:
    """alpha_i(t): (B, G) -> (B, G), from G / F(o_i) at step 0 to 1 at the last (ARM, equations 3 and 4).

    Without `decay` it stays G / F(o_i).
    """
    if not 0 <= step <= total_steps or total_steps == 0:
        raise ValueError(f"step must lie between 0 and total_steps, got {step} of {total_steps}")
    if counts.min() < 1 or counts.max() > group_size:
        raise ValueError(f"counts must lie between 1 and group_size, {group_size}")
    full = group_size / counts
    left = 0.5 * (1 + math.cos(math.pi * step / total_steps)) if decay else 1.0
    return 1 + left * (full - 1)


def scale_rewards(
    rewards: torch.Tensor, formats: Formats, step: float, total_steps: float, *, decay: bool = True
) -> torch.Tensor:
    """r'_i = alpha_i(t) r_i: (B, G) -> (B, G) (ARM, equation 2).

    A response without a format keeps its reward as it is: to be rare must not pay for it. ARM's code stops
    there unless the reward is 0.
    """
    if rewards.shape != (len(formats), len(formats[0])):
        groups = f"{len(formats)} groups of formats with {len(formats[0])} each"
        raise ValueError(f"rewards have the shape {tuple(rewards.shape)}, but there are {groups}")
    rewards = rewards if rewards.is_floating_point() else rewards.float()
    counts = format_counts(formats).to(rewards)  # late, rewards differ little: count in their precision
    scale = diversity_scale(counts, rewards.size(1), step, total_steps, decay=decay)
    known = torch.tensor([[format is not None for format in group] for group in formats])
    return torch.where(known.to(rewards.device), rewards * scale, rewards)


@dataclass(frozen=True, kw_only=True)
class AdaGRPO(GRPO):
    """Ada-GRPO. `schedule` says what t and T are at rollout batch s of S: "code" adds 1 to both."""

    name: ClassVar[str] = "ada_grpo"

    decay: bool = True
    schedule: Literal["paper", "code"] = "paper"
    without: Literal["direct", "short_cot", "code", "long_cot"] | None = None  # an ablation: earns nothing

    def shape_group(self, group: Group, progress: Progress) -> torch.Tensor:
        later = int(self.schedule == "code")
        rewards = group.ok if self.without is None else group.ok * ~group.opens(self.without)
        step, total = progress.step + later, progress.total + later
        return scale_rewards(rewards, group.mode, step, total, decay=self.decay)

    @classmethod
    def code(cls, base: str, **changes: Any) -> Self:
        return super().code(base, **{"schedule": "code"} | changes)
