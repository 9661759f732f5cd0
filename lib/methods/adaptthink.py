"""AdaptThink: a thinking model learns when to skip thinking.

The prompt ends in an open `<think>`. A response whose first token is `</think>` skips thinking. Half of the
training responses are forced to begin so: the model would never try it by itself, and so never learn it.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import torch

from lib.checked import Range
from lib.methods.base import DIAL, Count, Group, MethodConfig, Progress, every_token
from lib.methods.grpo import clipped_loss, is_clipped, masked_mean
from lib.methods.readings import SKIPS, THINKS, THINKS_ANYHOW
from lib.thinking import CLOSE, OPEN

Variant = Literal["geometric_mean", "sequence", "token", "unadjusted"]
VARIANTS: tuple[Variant, ...] = ("geometric_mean", "sequence", "token", "unadjusted")
UNREAD = (  # options for the loss of TRL, which this one takes the place of
    *("loss_type", "epsilon_high", "delta", "importance_sampling_level", "off_policy_mask_threshold"),
    *("mask_truncated_completions", "top_entropy_quantile", "use_adaptive_entropy", "entropy_target"),
    *("entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "use_bias_correction_kl"),
    *("sapo_temperature_neg", "sapo_temperature_pos", "vespo_k_pos", "vespo_lambda_pos"),
    *("vespo_k_neg", "vespo_lambda_neg", "use_liger_kernel", "router_aux_loss_coef", "sync_ref_model"),
)
PAPER_BASE = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"

# ---- formulas ----------------------------------------------------------------------------------


def adaptthink_advantages(
    rewards: torch.Tensor, reference_accuracy: torch.Tensor, is_nothinking: torch.Tensor, delta: float
) -> torch.Tensor:
    """delta for NoThinking + reward - the reference's mean reward on the question, all (N,) (section 3.1).

    No group mean and no standard deviation: a question that all responses get right still teaches.
    """
    return delta * is_nothinking.to(rewards.dtype) + rewards - reference_accuracy


def importance_ratio(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    mask: torch.Tensor,
    is_nothinking: torch.Tensor,
    *,
    nothinking_ratio: float = 0.5,
    variant: Variant = "geometric_mean",
    start_log_probs: torch.Tensor | None = None,
) -> torch.Tensor:
    """pi / pi_IS of each response, (N, 1), or of each token, (N, T), from log-probs (N, T).

    pi_IS is the old policy with the first token forced: its old probability is `nothinking_ratio`, or one
    minus that (Eq. 8), times that of the token in its mode where it was drawn (`start_log_probs`, (N,)).
    "geometric_mean" is a response's ratio ^ (1 / tokens), as the released code has it; "sequence" the ratio
    itself (Eq. 9); "token" one for each token; "unadjusted" the same with the old probability as it was.
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; there are {', '.join(VARIANTS)}")
    if not 0 < nothinking_ratio < 1:
        raise ValueError(f"nothinking_ratio must lie between 0 and 1, got {nothinking_ratio}")
    if variant != "unadjusted":
        shares = old_log_probs.new_tensor([1 - nothinking_ratio, nothinking_ratio])
        first = shares.log()[is_nothinking.long()]
        first = first if start_log_probs is None else first + start_log_probs
        old_log_probs = torch.cat([first[:, None], old_log_probs[:, 1:]], dim=1)
    return joined((log_probs - old_log_probs) * mask, mask, variant).exp()


def joined(log_ratio: torch.Tensor, mask: torch.Tensor, variant: Variant) -> torch.Tensor:
    """Log-ratios (N, T), 0 where masked, as the variant has them: (N, 1) for a response, or as they are."""
    if variant == "sequence":
        return log_ratio.sum(1, keepdim=True)
    if variant == "geometric_mean":
        return log_ratio.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    return log_ratio


def counted(ratio: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """What a mean over ratios weighs: real tokens of (N, T), or each response of (N, 1)."""
    return mask.float() if ratio.shape[1] > 1 else torch.ones_like(ratio)


# ---- method ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Thinking(MethodConfig):
    """The settings of the paper and its released script for the 1.5B model (one epoch is 314 steps)."""

    reading: Literal["formats", "thinking"] = "thinking"
    thinking_start: str = "Alright"
    batches: Count = 314
    num_generations: Annotated[int, Range(2)] = 16
    learning_rate: Annotated[float, Range(above=0, high=1)] = 2e-6
    temperature: Annotated[float, Range(above=0, high=2)] = 0.6
    max_completion_length: Count = 16384
    normaliser: Literal["batch", "micro_batch", "group", "response"] = "response"
    weight_decay: Annotated[float, Range(0, 1)] = 0.01
    eval_every: Annotated[int, Range(0)] = 10
    save_every: Count = 10

    @classmethod
    def paper(cls, base: str = PAPER_BASE, **changes: Any) -> Self:
        return cls(base=base, **changes)

    @classmethod
    def cpu(cls, base: str = "dial-thinker", **changes: Any) -> Self:
        """For the dial world."""
        small = DIAL | {"num_generations": 4, "prompts": 24, "temperature": 1.0, "thinking_start": "Okay"}
        # At a constant rate the skipping of medium questions went to and fro.
        return cls(base=base, **small | {"lr_scheduler_type": "linear", "save_every": 40} | changes)


@dataclass(frozen=True, kw_only=True)
class AdaptThink(Thinking):
    """AdaptThink (section 3): forced first tokens, a fixed baseline per question, and its own loss.

    Rows have a column `reference_accuracy`. `max_completion_length` is the cap of responses that think. With
    `force_start=False` the half that thinks begins with any word but `</think>`, drawn from the policy, so
    that the loss sees how free responses begin (not in the paper).
    """

    name: ClassVar[str] = "adaptthink"
    needs: ClassVar[tuple[str, ...]] = (*MethodConfig.needs, "reference_accuracy")  # of `with_reference`
    own_loss: ClassVar[bool] = True
    taken: ClassVar[dict[str, str]] = MethodConfig.taken | dict.fromkeys(UNREAD, "AdaptThink's own loss")
    shown: ClassVar[Mapping[str, str]] = {
        "skipping right": "nothinking/accuracy",
        "thinking right": "thinking/accuracy",
        "log P(</think>)": "log_p_nothinking",
    }

    delta: Annotated[float, Range(0, 1)] = 0.05  # the bonus for skipping
    variant: Variant = "geometric_mean"
    nothinking_ratio: Annotated[float, Range(above=0, below=1)] = 0.5
    max_nothinking_length: Count = 4096  # cap of a response that skips, in training
    force_start: bool = True

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        share = self.num_generations * self.nothinking_ratio
        if abs(share - self.skipping) > 1e-6 or not 0 < self.skipping < self.num_generations:
            forced = f"nothinking_ratio * num_generations = {share:g} of {self.num_generations} responses"
            whole = "each mode needs a whole number from 1, or the loss has another ratio"
            yield f"{forced} cannot be forced to skip: {whole}"
        if self.thinking_start in (OPEN, CLOSE):
            yield f"thinking_start must be a word of thinking, not {OPEN} or {CLOSE}: a tag is no thinking"
        if (cap := self.max_nothinking_length) > (most := self.max_completion_length):
            yield f"max_nothinking_length must be at most max_completion_length = {most}, got {cap}"

    @property
    def skipping(self) -> int:
        """How many responses of a group are forced to skip thinking."""
        return round(self.num_generations * self.nothinking_ratio)

    def start(self, progress: Progress, size: int, rng: random.Random) -> list[str | None]:
        thinks = THINKS if self.force_start else THINKS_ANYHOW
        return [*[SKIPS] * self.skipping, *[thinks] * (size - self.skipping)]

    def cap(self, mode: str | None, progress: Progress) -> int:
        return self.max_nothinking_length if mode == SKIPS else self.max_completion_length

    def advantage(self, rewards: torch.Tensor, group: Group, progress: Progress) -> torch.Tensor:
        skips, reference = group.opens(SKIPS), group.column("reference")
        return every_token(adaptthink_advantages(rewards, reference, skips, self.delta))

    def loss(
        self, log_probs: torch.Tensor, old_log_probs: torch.Tensor, batch: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
        """The clipped loss, a mean over responses, on `batch` with advantages and both masks."""
        skipped, mask = batch["is_nothinking"], batch["completion_mask"]
        named: dict[str, Any] = {"nothinking_ratio": self.nothinking_ratio, "variant": self.variant}
        if not self.force_start:
            thinks = torch.log1p(-batch["log_p_nothinking"].exp())
            named["start_log_probs"] = (old_log_probs[:, 0] - thinks) * ~skipped
        ratio = importance_ratio(log_probs, old_log_probs, mask, skipped, **named)
        weights, clip = counted(ratio, mask), (batch["advantages"], self.epsilon)
        losses = clipped_loss(ratio, *clip)
        correction = batch.get("importance_sampling_ratio")  # trainer over vLLM, from TRL
        if correction is not None:
            joint = correction.shape[1] == 1
            losses = losses * (correction if joint else joined(correction.log(), mask, self.variant).exp())
        loss = masked_mean(losses, weights, group_size=1)
        ratio, first = ratio.detach(), log_probs.detach()[:, 0]
        return loss, {
            "ratio/mean": ((ratio * weights).sum(), weights.sum()),
            "ratio/clipped": ((is_clipped(ratio, *clip) * weights).sum(), weights.sum()),
            "log_p_nothinking": (first[skipped].sum(), skipped.sum()),
            "log_p_thinking": (first[~skipped].sum(), (~skipped).sum()),
        }

    @classmethod
    def cpu(cls, base: str = "dial-thinker", **changes: Any) -> Self:
        return super().cpu(base, **{"max_nothinking_length": 32} | changes)
