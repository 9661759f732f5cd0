"""AdaptThink: a thinking model learns when to skip thinking, with TRL's GRPOTrainer as the engine.

The prompt ends in an open `<think>`. A response whose first token is `</think>` skips thinking. Half of the
training responses are forced to begin so: the model would never try it by itself, and so never learn it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import trl
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from lib.methods.callbacks import RunCallback
from lib.methods.training import (
    accumulation_steps,
    load_result,
    prepare,
    shared_arguments,
    train_once,
    trained_dtype,
)
from lib.policies.adapters import add_lora
from lib.policies.load import fingerprint, load_policy
from lib.runs import Run, digest
from lib.thinking import ModeTokens, is_solution_right

Variant = Literal["geometric_mean", "sequence", "token", "unadjusted"]
VARIANTS: tuple[Variant, ...] = ("geometric_mean", "sequence", "token", "unadjusted")
TIERS = ("easy", "medium", "hard")
SHOWN = {"accuracy": "accuracy", "tokens": "tokens/mean", "skips": "nothinking_ratio"}
SHOWN_FORCED = {
    "skipping right": "nothinking/accuracy",
    "thinking right": "thinking/accuracy",
    "log P(</think>)": "log_p_nothinking",
}


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
    "unadjusted" leaves it as it was.
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
    log_ratio = (log_probs - old_log_probs) * mask
    if variant == "sequence":
        log_ratio = log_ratio.sum(1, keepdim=True)
    elif variant == "geometric_mean":
        log_ratio = log_ratio.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    return log_ratio.exp()


def clipped_loss(
    ratio: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """-min(r A, clip(r) A) for ratios (N, 1) or (N, T): a mean over tokens first, then over responses."""
    advantages = advantages[:, None]
    losses = -torch.min(ratio * advantages, ratio.clamp(1 - epsilon, 1 + epsilon) * advantages)
    if ratio.shape[1] > 1:
        losses = (losses * mask).sum(1) / mask.sum(1).clamp(min=1)
    return losses.mean()


def adaptthink_loss(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    is_nothinking: torch.Tensor,
    *,
    nothinking_ratio: float = 0.5,
    epsilon: float = 0.2,
    variant: Variant = "geometric_mean",
) -> torch.Tensor:
    """The clipped loss of AdaptThink, a mean over N responses; log-probs and mask are (N, T).

    geometric_mean: one ratio a response, (pi / pi_IS)^(1 / tokens), as the released code has it.
    sequence: one ratio a response, pi / pi_IS, as published (Eq. 9).
    token: a ratio for each token, the first against `nothinking_ratio`; mean over the tokens of a response.
    unadjusted: the same with the policy's own old probability of the first token, so no importance sampling.
    """
    ratio = importance_ratio(
        log_probs, old_log_probs, mask, is_nothinking, nothinking_ratio=nothinking_ratio, variant=variant
    )
    return clipped_loss(ratio, advantages, mask, epsilon)


def nothinking_fixed_point(
    nothinking_advantage: float, thinking_advantage: float, nothinking_tokens: float, thinking_tokens: float
) -> float:
    """Where the released loss takes P(NoThinking) when both mean advantages are positive.

    Each response weighs A / tokens, so the shorter mode wins although it is the worse one. Derived here.
    """
    for name, value in (("nothinking", nothinking_advantage), ("thinking", thinking_advantage)):
        if value <= 0:
            raise ValueError(f"{name}_advantage must be positive, got {value}: the other mode takes all")
    pull, push = nothinking_advantage / nothinking_tokens, thinking_advantage / thinking_tokens
    return pull / (pull + push)


# ---- trainers ----------------------------------------------------------------------------------


def forced_modes(count: int, num_generations: int, nothinking_ratio: float) -> list[bool]:
    """Whether each of `count` responses must skip thinking: the first share of every group, exactly."""
    wanted = round(num_generations * nothinking_ratio)
    if not 0 < wanted < num_generations:
        raise ValueError(
            f"nothinking_ratio {nothinking_ratio} of {num_generations} generations leaves one mode without "
            "responses"
        )
    return [place % num_generations < wanted for place in range(count)]


def accuracy_reward(
    completions: Sequence[Any], answer: Sequence[str], kind: Sequence[str], **columns: Any
) -> list[float]:
    """`is_solution_right` of each completion as 0 or 1, in TRL's signature."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [float(is_solution_right(*row)) for row in zip(texts, answer, kind, strict=True)]


class ThinkingTrainer(trl.GRPOTrainer):
    """GRPO on prompts with an open think tag; it logs both modes, in training and in free-running evaluation.

    The first reward function says what is right. Columns `tier` of easy, medium and hard are logged apart.
    `other_start_ratio` is the share of responses that begin as neither mode was forced to.
    Evaluate in one batch: TRL takes the plain mean over batches.
    """

    def __init__(self, *arguments: Any, modes: ModeTokens | None = None, **named: Any):
        super().__init__(*arguments, **named)
        self.modes = modes or ModeTokens.find(self._tokenizer)
        for row in self.train_dataset.select(range(min(100, len(self.train_dataset)))):
            self.modes.check_prompt(self._tokenizer, self._tokenize_prompts([row["prompt"]])[0][0])

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        mine = slice(self.accelerator.process_index * len(prompts), None)
        self._rewards = rewards[mine][: len(prompts)]  # of this process, a column per function
        return rewards

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        batch["is_nothinking"] = batch["completion_ids"][:, 0] == self.modes.close
        self._log_modes(inputs, batch)
        return batch

    def _log_modes(self, inputs: Sequence[Mapping[str, Any]], batch: Mapping[str, torch.Tensor]) -> None:
        """Accuracy, tokens, truncated share and NoThinking ratio: in all, of each mode, of each tier."""
        ids, mask = batch["completion_ids"], batch["completion_mask"]
        ends = torch.tensor([*self.eos_token_ids, self._tokenizer.pad_token_id], device=ids.device)
        tokens = mask.sum(1)
        last = ids.gather(1, (tokens - 1).clamp(min=0)[:, None])[:, 0]
        tiers = [TIERS.index(row["tier"]) if row.get("tier") in TIERS else -1 for row in inputs]
        known = torch.tensor([self.modes.close, self.modes.start], device=ids.device)
        columns = [self._rewards[:, 0], tokens, ~torch.isin(last, ends), batch["is_nothinking"]]
        columns = [*columns, torch.tensor(tiers, device=ids.device), ~torch.isin(ids[:, 0], known)]
        table = self.accelerator.gather(torch.stack([column.float() for column in columns], dim=1))
        skipped, tier = table[:, 3] == 1, table[:, 4]
        parts = {"": torch.ones_like(skipped), "thinking/": ~skipped, "nothinking/": skipped}
        parts |= {f"{name}/": tier == place for place, name in enumerate(TIERS)}
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, chosen in parts.items():
            if chosen.any():
                values = table[chosen].mean(0).tolist()
                for metric, value in zip(("accuracy", "tokens/mean", "truncated"), values, strict=False):
                    metrics[f"{name}{metric}"].append(value)
                if not name.startswith(("thinking", "nothinking")):
                    metrics[f"{name}nothinking_ratio"].append(values[3])
        metrics["other_start_ratio"].append(table[:, 5].mean().item())
        if not self.model.training:
            log_p = self.accelerator.gather(self._log_p_nothinking(batch))
            metrics["log_p_nothinking"].append(log_p.mean().item())

    @torch.no_grad()
    def _log_p_nothinking(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Log-probability of `</think>` as the first token, (N,): the early sign, long before any sample."""
        close = torch.full_like(batch["prompt_ids"][:, :1], self.modes.close)
        log_probs, _, _ = self._get_per_token_logps_and_entropies(
            self.model,
            torch.cat([batch["prompt_ids"], close], dim=1),
            torch.cat([batch["prompt_mask"], torch.ones_like(close)], dim=1),
            1,
        )
        return log_probs[:, 0]


class AdaptThinkTrainer(ThinkingTrainer):
    """AdaptThink (section 3): forced first tokens, a fixed baseline per question, and its own loss.

    The dataset has a column `reference_accuracy`. Evaluation forces nothing. `max_completion_length` is the
    cap of Thinking responses and of evaluation. With `force_start=False` the half that thinks begins with any
    word but `</think>`, drawn from the policy, so that the loss sees how free responses begin (not in the
    paper).
    """

    def __init__(
        self,
        *arguments: Any,
        delta: float = 0.05,
        nothinking_ratio: float = 0.5,
        variant: Variant = "geometric_mean",
        max_nothinking_length: int | None = None,
        force_start: bool = True,
        **named: Any,
    ):
        super().__init__(*arguments, **named)
        if "reference_accuracy" not in self.train_dataset.column_names:
            raise ValueError("The training set has no column reference_accuracy; make it with with_reference")
        if variant not in VARIANTS:
            raise ValueError(f"unknown variant {variant!r}; there are {', '.join(VARIANTS)}")
        if self.use_vllm:
            raise ValueError("use_vllm must be False: the first token is forced row by row")
        if self.beta:
            raise ValueError(f"beta must be 0, got {self.beta}: AdaptThink has no KL term")
        rows = self.args.per_device_train_batch_size * self.args.steps_per_generation
        if rows % self.num_generations:
            raise ValueError(
                f"a process generates {rows} responses at a time, which splits groups of "
                f"{self.num_generations}: make per_device_train_batch_size * steps_per_generation a multiple"
            )
        forced_modes(1, self.num_generations, nothinking_ratio)
        self.delta, self.nothinking_ratio, self.variant = delta, nothinking_ratio, variant
        self.max_nothinking_length = max_nothinking_length or self.max_completion_length
        self.force_start = force_start

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, *more, **named):
        generate_turn = super()._generate_single_turn
        if not self.model.training:
            return generate_turn(prompt_ids, images, multimodal_fields, num_generations, *more, **named)
        forced = forced_modes(len(prompt_ids), num_generations, self.nothinking_ratio)
        completions: list[list[int]] = [[] for _ in prompt_ids]
        thinks = [self.modes.start] if self.force_start else []
        for skips, start, length in (
            (True, [self.modes.close], self.max_nothinking_length),
            (False, thinks, self.max_completion_length),
        ):
            rows = [row for row, mode in enumerate(forced) if mode == skips]
            with self._restricted(length - len(start), never_first=[] if start else [self.modes.close]):
                texts, _ = generate_turn([[*prompt_ids[row], *start] for row in rows], None, {}, len(rows))
            for row, ids in zip(rows, texts, strict=True):
                completions[row] = [*start, *ids]
        return completions, None

    @contextmanager
    def _restricted(self, length: int, never_first: Sequence[int]) -> Iterator[None]:
        """Generate at most `length` new tokens, the first of them none of `never_first`."""
        wanted = {"max_new_tokens": length, "begin_suppress_tokens": list(never_first) or None}
        usual = {name: getattr(self.generation_config, name) for name in wanted}
        self.generation_config.update(**wanted)
        try:
            yield
        finally:
            self.generation_config.update(**usual)

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        if not self.model.training:
            return batch
        weights = self.reward_weights.to(self._rewards.device)
        batch["advantages"] = adaptthink_advantages(
            (self._rewards * weights).nansum(1),
            torch.tensor([row["reference_accuracy"] for row in inputs], device=self._rewards.device),
            batch["is_nothinking"],
            self.delta,
        )
        if not self.force_start:
            batch["log_p_nothinking"] = self._log_p_nothinking(batch)
        return batch

    def _compute_loss(self, model, inputs):
        if not model.training:  # nothing is forced there
            return super()._compute_loss(model, inputs)
        mask = inputs["completion_mask"]
        log_probs, _, _ = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], mask], dim=1),
            mask.shape[1],
        )
        old_log_probs = inputs.get("old_per_token_logps")  # None while there is one step per batch
        old_log_probs = log_probs.detach() if old_log_probs is None else old_log_probs
        start_log_probs = None
        if not self.force_start:
            thinks = torch.log1p(-inputs["log_p_nothinking"].exp())
            start_log_probs = (old_log_probs[:, 0] - thinks) * ~inputs["is_nothinking"]
        ratio = importance_ratio(
            log_probs,
            old_log_probs,
            mask,
            inputs["is_nothinking"],
            nothinking_ratio=self.nothinking_ratio,
            variant=self.variant,
            start_log_probs=start_log_probs,
        )
        self._log_ratio(ratio.detach(), log_probs.detach()[:, 0], inputs)
        loss = clipped_loss(ratio, inputs["advantages"], mask, self.args.epsilon)
        return loss / self.current_gradient_accumulation_steps

    def _log_ratio(
        self, ratio: torch.Tensor, first: torch.Tensor, inputs: Mapping[str, torch.Tensor]
    ) -> None:
        """Mean ratio, share of ratios where the clip stops the gradient, and log P of the forced tokens."""
        metrics, skipped = self._metrics["train"], inputs["is_nothinking"]
        advantages, mask = inputs["advantages"][:, None], inputs["completion_mask"]
        weights = mask.float() if ratio.shape[1] > 1 else torch.ones_like(ratio)
        stopped = (ratio > 1 + self.args.epsilon) & (advantages > 0)
        stopped |= (ratio < 1 - self.args.epsilon) & (advantages < 0)
        sums = [
            ((ratio * weights).sum(), weights.sum()),
            ((stopped * weights).sum(), weights.sum()),
            (first[skipped].sum(), skipped.sum()),
            (first[~skipped].sum(), (~skipped).sum()),
        ]
        totals = torch.stack([torch.stack([a.float(), b.float()]) for a, b in sums])
        totals = self.accelerator.reduce(totals, "sum").tolist()
        names = ("ratio/mean", "ratio/clipped", "log_p_nothinking", "log_p_thinking")
        for name, (total, count) in zip(names, totals, strict=True):
            if count:
                metrics[name].append(total / count)


# ---- training ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class AdaptThinkConfig:
    """How to train; `batch_size` counts responses per step over all processes, one gradient step each.

    `method` "adaptthink" is the paper's. "grpo" samples freely, and gets the same reward, bonus included.
    "grpo_length" rewards short right responses instead (a part of the reward of at most `length_weight`).
    """

    base: str
    method: Literal["adaptthink", "grpo", "grpo_length"] = "adaptthink"
    delta: float = 0.05
    variant: Variant = "geometric_mean"
    nothinking_ratio: float = 0.5
    epsilon: float = 0.2
    length_weight: float = 0.2
    num_generations: int = 16
    batch_size: int = 2048
    micro_batch_size: int = 4
    max_steps: int = 314
    learning_rate: float = 2e-6
    lr_scheduler_type: str = "constant"
    temperature: float = 0.6
    max_thinking_tokens: int = 16384
    max_nothinking_tokens: int = 4096
    start: str = "Alright"  # the first token forced for Thinking
    force_start: bool = True  # False: the half that thinks begins with any word but </think>
    quantised: bool = False
    lora_rank: int = 0  # 0: train all weights
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    gradient_checkpointing: bool = True
    eval_every: int = 10
    save_every: int = 10
    seed: int = 0

    @classmethod
    def paper(cls, base: str = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B") -> AdaptThinkConfig:
        """The settings of the paper and its released script for the 1.5B model (one epoch is 314 steps)."""
        return cls(base)

    @classmethod
    def cpu(cls, base: str = "dial-thinker") -> AdaptThinkConfig:
        """For the dial world: a few minutes on one core."""
        return cls(
            base,
            num_generations=4,
            batch_size=96,
            micro_batch_size=96,
            max_steps=80,
            learning_rate=4e-4,
            lr_scheduler_type="linear",  # at a constant rate the skipping of medium questions went to and fro
            temperature=1.0,
            max_thinking_tokens=160,
            max_nothinking_tokens=32,
            start="Okay",
            precision="float32",
            gradient_checkpointing=False,
            save_every=40,
        )


def length_reward(config: AdaptThinkConfig) -> Callable[..., list[float]]:
    """Minus `length_weight` times the share of the token budget that a right response uses."""

    def reward(completions, completion_ids, answer, kind, **columns) -> list[float]:
        right = accuracy_reward(completions, answer, kind)
        shares = [len(ids) / config.max_thinking_tokens for ids in completion_ids]
        return [-config.length_weight * r * share for r, share in zip(right, shares, strict=True)]

    return reward


def nothinking_bonus(close: int, delta: float) -> Callable[..., list[float]]:
    """delta where the response begins with the token `close`."""

    def reward(completion_ids, **columns) -> list[float]:
        return [delta * float(ids[:1] == [close]) for ids in completion_ids]

    return reward


def make_trainer(
    config: AdaptThinkConfig,
    rows: Sequence[Mapping[str, Any]],
    validation_rows: Sequence[Mapping[str, Any]],
    run: Run,
    *,
    callback: RunCallback | None = None,
) -> ThinkingTrainer:
    """The trainer of a run, on rows of `question_rows` and `with_reference`; nothing is trained yet."""
    set_seed(config.seed)
    dtype = trained_dtype(config.precision, full=not config.lora_rank)
    model, tokenizer = load_policy(config.base, quantised=config.quantised, dtype=dtype)
    if config.lora_rank:
        model = add_lora(model, rank=config.lora_rank, alpha=2 * config.lora_rank)
    arguments = trl.GRPOConfig(
        **shared_arguments(run.checkpoint, seed=config.seed, precision=config.precision),
        max_steps=config.max_steps,
        per_device_train_batch_size=config.micro_batch_size,
        per_device_eval_batch_size=max(1, len(validation_rows)),
        num_generations=config.num_generations,
        num_generations_eval=1,
        generation_batch_size=config.batch_size,
        max_completion_length=config.max_thinking_tokens,
        temperature=config.temperature,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler_type,
        weight_decay=0.01,
        beta=0.0,
        epsilon=config.epsilon,
        loss_type="grpo",
        scale_rewards="group",
        gradient_checkpointing=config.gradient_checkpointing,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=config.eval_every,
        eval_on_start=True,
        save_steps=config.save_every,
        save_total_limit=1,
    )
    arguments.gradient_accumulation_steps = accumulation_steps(
        config.batch_size, config.micro_batch_size, arguments.world_size
    )
    modes = ModeTokens.find(tokenizer, start=config.start)
    rewards, named = [accuracy_reward], {}
    kind = ThinkingTrainer
    if config.method == "adaptthink":
        kind = AdaptThinkTrainer
        named = {
            "delta": config.delta,
            "nothinking_ratio": config.nothinking_ratio,
            "variant": config.variant,
            "max_nothinking_length": config.max_nothinking_tokens,
            "force_start": config.force_start,
        }
    elif config.method == "grpo":
        rewards = [accuracy_reward, nothinking_bonus(modes.close, config.delta)]
    else:
        rewards = [accuracy_reward, length_reward(config)]
    trainer = kind(
        model=model,
        args=arguments,
        reward_funcs=rewards,
        train_dataset=Dataset.from_list(list(rows)),
        eval_dataset=Dataset.from_list(list(validation_rows)),
        processing_class=tokenizer,
        modes=modes,
        callbacks=[callback] if callback else [],
        **named,
    )
    prepare(trainer, config.precision)
    return trainer


def train_adaptthink(
    config: AdaptThinkConfig,
    rows: Sequence[Mapping[str, Any]],
    validation_rows: Sequence[Mapping[str, Any]],
    run: Run,
    *,
    stop_at: int | None = None,
    say: Callable[[str], None] | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """Train, or go on where the run folder stopped: the model, its tokenizer, and what it took.

    The result is saved to `run.checkpoint / "result"`. `stop_at` ends early on the schedule of the full run.
    Ctrl-C saves and raises KeyboardInterrupt; the same call then resumes. What was trained to the end before
    is loaded.
    """
    shown = SHOWN_FORCED if config.method == "adaptthink" else SHOWN
    callback = RunCallback(run, say=say, stop_at=stop_at, shown=shown)
    settings = asdict(config) | {
        "weights": fingerprint(config.base),
        "rows": digest(list(rows)),
        "validation_rows": digest(list(validation_rows)),
    }
    trainer, facts = train_once(
        run, settings, lambda: make_trainer(config, rows, validation_rows, run, callback=callback), callback
    )
    facts = {"config": asdict(config)} | facts | {"questions": len(rows)}
    if trainer:
        return trainer.model.eval(), trainer.processing_class, facts
    dtype = trained_dtype(config.precision, full=not config.lora_rank)
    return *load_result(run, config.base, quantised=config.quantised, dtype=dtype), facts


def train(config: Mapping[str, Any]) -> dict[str, Any]:
    """`train_adaptthink` as `lib.launch` calls it, in one process or several; returns what it took.

    `config`: "adaptthink" (fields of AdaptThinkConfig), "rows", "validation_rows", and the run's "folder".
    """
    run = Run(Path(config["folder"]), config)
    settings = AdaptThinkConfig(**config["adaptthink"])
    return train_adaptthink(settings, config["rows"], config["validation_rows"], run, say=print)[2]


def load_trained(config: AdaptThinkConfig, run: Run) -> PreTrainedModel:
    """The model that a run trained; an adapter is put on its base."""
    return load_result(run, config.base, quantised=config.quantised, dtype=getattr(torch, config.precision))[
        0
    ]
