"""GRPO: its formulas (advantages, clipped loss, KL estimate, masked means), and the method.

Shapes: B prompts with G samples each, N = B * G responses of T tokens. `mask` (N, T) is 1 on the tokens of a
response and 0 on padding. TRL's GRPOTrainer computes the same; tests hold both together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import torch

from lib.checked import Range
from lib.methods.base import DIAL, Count, Group, MethodConfig, Progress, Share, every_token

KL = Literal["k3", "k3_clamped"]
KL_LIMIT = 10.0  # of the clamped estimator, as in verl, on which ARM's code stands


def group_relative_advantages(
    rewards: torch.Tensor, *, scale: Literal["group", "none"] = "group", eps: float = 1e-6
) -> torch.Tensor:
    """How much better each response is than its group: (B, G) -> (B, G) (ARM, equation 5).

    "group" divides by the sample standard deviation (n - 1) plus `eps`: 1e-6 in ARM's code, 1e-4 in TRL.
    "none" only subtracts the mean. A group of equal rewards has advantages of zero, exactly. In ARM's code
    eight times 8/3 have .19: the mean is rounded, and that error is divided by a deviation as small.
    """
    if rewards.dim() != 2 or rewards.size(1) < 2:
        raise ValueError(f"rewards must have the shape (B, G), G of 2 or more, got {tuple(rewards.shape)}")
    equal = (rewards == rewards[:, :1]).all(dim=1, keepdim=True)
    centred = (rewards - rewards.mean(dim=1, keepdim=True)).masked_fill(equal, 0.0)
    if scale == "none":
        return centred
    if scale != "group":
        raise ValueError(f"scale must be group or none, got {scale!r}")
    return centred / (rewards.std(dim=1, correction=1, keepdim=True) + eps)


def clipped_loss(ratio: torch.Tensor, advantages: torch.Tensor, epsilon: float = 0.2) -> torch.Tensor:
    """Minus the clipped objective of each token: (N, T), (N,) -> (N, T) (ARM, equation 6)."""
    advantages = advantages.unsqueeze(1)
    return -torch.min(ratio * advantages, ratio.clamp(1 - epsilon, 1 + epsilon) * advantages)


def is_clipped(ratio: torch.Tensor, advantages: torch.Tensor, epsilon: float = 0.2) -> torch.Tensor:
    """Where the clip takes the gradient away: (N, T), (N,) -> (N, T)."""
    advantages = advantages.unsqueeze(1)
    return ((ratio > 1 + epsilon) & (advantages > 0)) | ((ratio < 1 - epsilon) & (advantages < 0))


def kl_estimate(log_probs: torch.Tensor, ref_log_probs: torch.Tensor, kind: KL = "k3") -> torch.Tensor:
    """An estimate of KL(policy || reference) at each sampled token: (N, T), (N, T) -> (N, T).

    With d = reference - policy: k3 = exp(d) - d - 1 is unbiased and never negative. "k3_clamped" cuts it at
    10, as ARM's code does.
    """
    difference = ref_log_probs - log_probs
    if kind == "k3":
        return torch.exp(difference) - difference - 1
    if kind != "k3_clamped":
        raise ValueError(f"kind must be k3 or k3_clamped, got {kind!r}")
    near = difference.clamp(max=KL_LIMIT)  # beyond it is cut; exp would overflow, and the gradient be NaN
    return (torch.exp(near) - near - 1).clamp(-KL_LIMIT, KL_LIMIT)


def masked_mean(values: torch.Tensor, mask: torch.Tensor, group_size: int | None = None) -> torch.Tensor:
    """The mean over real tokens, as a scalar: (N, T), (N, T) -> ().

    All tokens of the batch weigh the same; with a `group_size` the mean of each so many responses comes
    first: of a prompt's responses (ARM, equation 6), or with 1 of each response.
    """
    if group_size is None:
        return (values * mask).sum() / mask.sum().clamp(min=1)
    if len(values) % group_size:
        raise ValueError(f"{len(values)} responses are no whole groups of group_size {group_size}")
    sums = (values * mask).sum(1).view(-1, group_size).sum(1)
    counts = mask.sum(1).view(-1, group_size).sum(1)
    return (sums / counts.clamp(min=1)).mean()


def grpo_loss(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    *,
    ref_log_probs: torch.Tensor | None = None,
    epsilon: float = 0.2,
    beta: float = 0.0,
    kl: KL = "k3",
    group_size: int | None = None,
) -> torch.Tensor:
    """The loss of a batch, a scalar (ARM, equation 6): the clipped term plus `beta` times the KL term.

    Its mean is `masked_mean`'s.
    """
    losses = clipped_loss(torch.exp(log_probs - old_log_probs), advantages, epsilon)
    if beta:
        if ref_log_probs is None:
            raise ValueError("beta is not 0, so ref_log_probs are needed")
        losses = losses + beta * kl_estimate(log_probs, ref_log_probs, kl)
    return masked_mean(losses, mask, group_size)


@dataclass(frozen=True, kw_only=True)
class GroupRelative(MethodConfig):
    """What compares a response with the others to the same question."""

    scale_rewards: Literal["group", "none"] = "group"  # by the group's deviation, or not at all
    advantage_eps: Annotated[float, Range(0)] = 1e-4  # added to the deviation; TRL's

    def advantage(self, rewards: torch.Tensor, group: Group, progress: Progress) -> torch.Tensor:
        found = group_relative_advantages(rewards, scale=self.scale_rewards, eps=self.advantage_eps)
        return every_token(found)


@dataclass(frozen=True, kw_only=True)
class GRPO(GroupRelative):
    """GRPO as ARM trains with it (appendix D.2)."""

    name: ClassVar[str] = "grpo"
    shown: ClassVar[Mapping[str, str]] = {
        "accuracy": "accuracy",
        "long CoT": "format/long_cot_share",
        "tokens": "tokens/mean",
    }

    prompts: Count = 1024
    updates: Count = 4  # ARM makes 6 unequal ones, TRL's are equal
    beta: Annotated[float, Range(0)] = 1e-3
    advantage_eps: Annotated[float, Range(0)] = 1e-6
    weight_decay: Share = 0.01  # ARM's code; the paper does not say

    @classmethod
    def code(cls, base: str, **changes: Any) -> Self:
        """As ARM's released code does it, where that differs from the paper: t runs from 1 to 170 of 171."""
        released: dict[str, Any] = {"batches": 170, "rules": "arm_training", "normaliser": "micro_batch"}
        released |= {"kl": "k3_clamped", "entropy_coef": 1e-3}
        return cls(base=base, **released | changes)

    @classmethod
    def cpu(cls, base: str = "dial-sft", **changes: Any) -> Self:
        """For the dial world: one update a batch, no reference model."""
        small = DIAL | {"prompts": 12, "updates": 1, "beta": 0.0, "weight_decay": 0.0}
        # At a lower rate choices stay half-learnt, at a higher or constant one skills wear (notebook 03).
        return cls(base=base, **small | {"learning_rate": 3e-4, "cooldown": 0.6} | changes)
