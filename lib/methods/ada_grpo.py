"""Ada-GRPO (ARM, section 4.2): GRPO with rewards scaled up for formats that are rare in their group.

Formulas first, then the trainer: TRL's GRPOTrainer with scaled rewards. With the scale off it is plain GRPO.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas as pd
import torch
import trl
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from lib.formats import ReasoningFormat, detect_format
from lib.methods.callbacks import RunCallback
from lib.methods.grpo import KL, group_relative_advantages, kl_estimate
from lib.methods.rewards import accuracy_reward
from lib.methods.training import (
    accumulation_steps,
    prepare,
    shared_arguments,
    train_once,
    trained_dtype,
)
from lib.policies.adapters import add_lora, merge_adapter
from lib.policies.load import fingerprint, load_policy
from lib.runs import Run, digest
from lib.tasks import Task, task_rows
from lib.verify import Rules

Formats = Sequence[Sequence[ReasoningFormat | str | None]]
SHOWN = {"accuracy": "accuracy", "long CoT": "format/long_cot_share", "tokens": "tokens/mean"}


# ---- formulas ----------------------------------------------------------------------------------


def format_counts(formats: Formats) -> torch.Tensor:
    """F(o_i): how many responses of a group share the format of response i: B lists of G -> (B, G).

    None, a response without a format, counts as one more format, as in ARM's code.
    """
    sizes = {len(group) for group in formats}
    if len(sizes) != 1:
        raise ValueError(f"all groups must have the same size G, got groups of {sorted(sizes)}")
    counts = [Counter(group) for group in formats]
    return torch.tensor(
        [[count[format] for format in group] for group, count in zip(formats, counts, strict=True)]
    )


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
        raise ValueError(
            f"rewards have the shape {tuple(rewards.shape)}, but there are {len(formats)} groups of formats "
            f"with {len(formats[0])} each"
        )
    rewards = rewards if rewards.is_floating_point() else rewards.float()
    counts = format_counts(formats).to(rewards)  # late, rewards differ little: count in their precision
    scale = diversity_scale(counts, rewards.size(1), step, total_steps, decay=decay)
    known = torch.tensor([[format is not None for format in group] for group in formats])
    return torch.where(known.to(rewards.device), rewards * scale, rewards)


# ---- trainer -----------------------------------------------------------------------------------


class AdaGRPOTrainer(trl.GRPOTrainer):
    """TRL's GRPO trainer with Ada-GRPO's scaled rewards, and the shares of formats in its logs.

    `scale_formats=False` is GRPO. `schedule` says what t and T are at rollout batch s of S: "paper" s and S,
    "code" s + 1 and S + 1. `advantage_eps` is added to the deviation. `kl` is the estimator that `beta`
    multiplies. With `group_mean` the policy term is a mean over the tokens of each group (equation 6 to the
    letter), not of the batch; the KL term stays a mean of the batch. Rows may have a `tier`: metrics are then
    logged per tier too.
    """

    _tag_names: ClassVar = ["trl", "grpo", "ada-grpo"]
    _name = "Ada-GRPO"

    def __init__(
        self,
        *arguments: Any,
        scale_formats: bool = True,
        decay: bool = True,
        schedule: Literal["paper", "code"] = "paper",
        advantage_eps: float = 1e-4,
        kl: KL = "k3",
        group_mean: bool = False,
        **named: Any,
    ):
        super().__init__(*arguments, **named)
        if self.args.scale_rewards == "batch":
            raise ValueError("scale_rewards must be group or none: advantages are relative to the group")
        if self.loss_type != "dapo" and (group_mean or kl != "k3"):
            raise ValueError(f"group_mean and kl={kl!r} need loss_type 'dapo', got {self.loss_type!r}")
        self.scale_formats, self.decay, self.schedule = scale_formats, decay, schedule
        self.advantage_eps, self.kl, self.group_mean = advantage_eps, kl, group_mean

    @property
    def training_time(self) -> tuple[float, float]:
        """t and T of the decay in rollout batches, each of which may serve several of TRL's steps."""
        steps_per_batch = (
            self.args.steps_per_generation * self.num_iterations / self.args.gradient_accumulation_steps
        )
        t, total = self.state.global_step // steps_per_batch, self.state.max_steps / steps_per_batch
        return (t, total) if self.schedule == "paper" else (t + 1, total + 1)

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        """Rewards of all processes, (N, functions), scaled where training; a group may be split over them."""
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if rewards.isnan().any():
            raise ValueError("a reward function gave None: Ada-GRPO needs a reward for every completion")
        formats = gather_object([detect_format(text) for text in completions])
        self._count(rewards, formats, inputs, completion_ids_list)
        if self.scale_formats and self.model.training:
            groups = [
                formats[i : i + self.num_generations] for i in range(0, len(formats), self.num_generations)
            ]
            step, total = self.training_time
            scaled = [
                scale_rewards(column.view(-1, self.num_generations), groups, step, total, decay=self.decay)
                for column in rewards.unbind(1)
            ]
            rewards = torch.stack([column.flatten() for column in scaled], dim=1)
        self._rewards = rewards
        return rewards

    def _count(
        self,
        rewards: torch.Tensor,
        formats: Sequence[ReasoningFormat | None],
        inputs: Sequence[Mapping[str, Any]],
        completion_ids: Sequence[Sequence[int]],
    ) -> None:
        """Log unscaled accuracy, tokens and format shares of all processes, overall and per tier."""
        rows = pd.DataFrame(
            {
                "tier": gather_object([row.get("tier") for row in inputs]),
                "accuracy": rewards[:, 0].tolist(),
                "tokens/mean": gather_object([len(ids) for ids in completion_ids]),
            }
        )
        for format in [*ReasoningFormat, None]:
            rows[f"format/{format or 'none'}_share"] = [found == format for found in formats]
        means = rows.drop(columns="tier").mean().to_dict()
        for tier, group in rows.groupby("tier"):
            means |= {f"{tier}/{name}": value for name, value in group.drop(columns="tier").mean().items()}
        for name, value in means.items():
            self._metrics["train" if self.model.training else "eval"][name].append(float(value))

    def _generate_and_score_completions(self, inputs):
        """TRL's batch, with the advantages of `lib.grpo` on the scaled rewards."""
        batch = super()._generate_and_score_completions(inputs)
        size = self.num_generations if self.model.training else self.num_generations_eval
        if size < 2:
            return batch
        rewards = (self._rewards * self.reward_weights.to(self._rewards)).sum(1).view(-1, size)
        advantages = group_relative_advantages(
            rewards, scale=self.args.scale_rewards, eps=self.advantage_eps
        ).flatten()
        if self.group_mean:
            advantages = advantages * self._group_weights(batch["completion_mask"], size)
        mine = self.accelerator.process_index * len(inputs)
        batch["advantages"] = advantages[mine : mine + len(inputs)]
        return batch

    def _group_weights(self, mask: torch.Tensor, size: int) -> torch.Tensor:
        """Weights (N,) that turn a mean over the tokens of the batch into the mean of the groups' means."""
        tokens = self.accelerator.gather(mask.sum(1)).view(-1, size).sum(1)
        return (tokens.sum() / (len(tokens) * tokens)).repeat_interleave(size)

    # TRL has k3 only. For another estimator its own KL term is switched off, and ours put in its place.

    def _get_per_token_logps_and_entropies(self, *arguments, **named):
        found = super()._get_per_token_logps_and_entropies(*arguments, **named)
        self._log_probs = found[0] if self.kl != "k3" else None
        return found

    def _compute_loss(self, model, inputs):
        if self.beta == 0.0 or self.kl == "k3":
            return super()._compute_loss(model, inputs)
        beta, self.beta = self.beta, 0.0
        try:
            loss = super()._compute_loss(model, inputs)
        finally:
            self.beta = beta
        mask = inputs["completion_mask"]
        terms = kl_estimate(self._log_probs, inputs["ref_per_token_logps"], self.kl) * mask
        mode = "train" if self.model.training else "eval"
        sums = self.accelerator.reduce(torch.stack([terms.detach().sum(), mask.sum()]), "sum")
        self._metrics[mode]["kl"].append((sums[0] / sums[1]).item())
        tokens = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes
        if mode == "train":
            tokens = tokens * self.current_gradient_accumulation_steps / self.args.steps_per_generation
        return loss + beta * terms.sum() / tokens


# ---- training ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class AdaGRPOConfig:
    """How to train with Ada-GRPO or GRPO; the defaults are those of ARM's paper (appendix D.2).

    A rollout batch is `prompts` questions with `num_generations` responses each, over all processes.
    """

    base: str
    algorithm: Literal["ada_grpo", "grpo"] = "ada_grpo"
    decay: bool = True
    schedule: Literal["paper", "code"] = "paper"
    rules: Rules = "strict"  # of the reward; "arm_evaluation" is accuracy alone, "arm_training" the code's
    without: ReasoningFormat | None = None  # an ablation: a format that earns nothing
    method: Literal["full", "lora", "qlora"] = "full"
    rank: int = 8
    alpha: int = 16
    learning_rate: float = 1e-6
    cooldown: float = 0.0  # last share of the updates, in which the rate falls to 0; before, it is constant
    batches: int = 171  # rollout batches: T
    prompts: int = 1024
    num_generations: int = 8  # G
    updates: int = 4  # optimizer steps on each rollout batch; ARM makes 6 unequal ones, TRL's are equal
    micro_batch_size: int = 4
    max_completion_length: int = 4096
    temperature: float = 1.0
    epsilon: float = 0.2
    beta: float = 1e-3
    kl: KL = "k3"
    entropy_coef: float = 0.0
    advantage_eps: float = 1e-6
    normaliser: Literal["batch", "group", "micro_batch"] = "batch"  # over whose tokens the loss is a mean
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    gradient_checkpointing: bool = True
    use_vllm: bool = False
    save_every: int = 25  # rollout batches
    seed: int = 0

    def __post_init__(self) -> None:
        formats = [format.value for format in ReasoningFormat]
        if self.without is not None and self.without not in formats:
            raise ValueError(f"without must be one of {', '.join(formats)} or None, got {self.without!r}")
        if self.algorithm not in ("ada_grpo", "grpo"):
            raise ValueError(f"algorithm must be ada_grpo or grpo, got {self.algorithm!r}")
        if self.normaliser not in ("batch", "group", "micro_batch"):
            raise ValueError(f"normaliser must be batch, group or micro_batch, got {self.normaliser!r}")
        if self.schedule not in ("paper", "code"):
            raise ValueError(f"schedule must be paper or code, got {self.schedule!r}")
        accumulation_steps(self.prompts * self.num_generations, self.micro_batch_size, self.updates)

    @classmethod
    def paper(cls, base: str, **changes: Any) -> AdaGRPOConfig:
        """As the paper has it. "batch" for its normaliser: DAPO's, which TRL calls its default."""
        return cls(base, **changes)

    @classmethod
    def code(cls, base: str, **changes: Any) -> AdaGRPOConfig:
        """As the released code does it, where that differs from the paper."""
        return cls(
            base,
            **{
                "schedule": "code",
                "rules": "arm_training",
                "kl": "k3_clamped",
                "entropy_coef": 1e-3,
                "normaliser": "micro_batch",
            }
            | changes,
        )

    @classmethod
    def cpu(cls, base: str = "dial-sft", **changes: Any) -> AdaGRPOConfig:
        """For the dial world: 96 responses a batch, one update each, all weights, no reference model."""
        return cls(
            base,
            **{
                "learning_rate": 4e-4,
                "cooldown": 0.3,  # constant to the end, Ada-GRPO stayed three points below GRPO in accuracy
                "batches": 80,
                "prompts": 12,
                "updates": 1,
                "micro_batch_size": 96,
                "max_completion_length": 160,
                "beta": 0.0,
                "precision": "float32",
                "gradient_checkpointing": False,
            }
            | changes,
        )


def question_rows(tasks: Sequence[Task]) -> Dataset:
    """Rows to train on: prompt, answer, kind and tier of each task."""
    return Dataset.from_list(task_rows(tasks))


def training_arguments(config: AdaGRPOConfig, folder: Path) -> trl.GRPOConfig:
    """The configuration as TRL writes it, for as many processes as there are."""
    updates = config.batches * config.updates
    cooldown = {"num_decay_steps": round(config.cooldown * updates)} if config.cooldown else None
    arguments = trl.GRPOConfig(
        **shared_arguments(folder, seed=config.seed, precision=config.precision),
        max_steps=updates,
        per_device_train_batch_size=config.micro_batch_size,
        num_generations=config.num_generations,
        generation_batch_size=config.prompts * config.num_generations,
        learning_rate=config.learning_rate,
        lr_scheduler_type="warmup_stable_decay" if config.cooldown else "constant",
        lr_scheduler_kwargs=cooldown,
        max_completion_length=config.max_completion_length,
        temperature=config.temperature,
        epsilon=config.epsilon,
        beta=config.beta,
        use_bias_correction_kl=False,
        entropy_coef=config.entropy_coef,
        loss_type="bnpo" if config.normaliser == "micro_batch" else "dapo",
        gradient_checkpointing=config.gradient_checkpointing,
        use_vllm=config.use_vllm,
        logging_steps=1,
        save_steps=config.save_every * config.updates,
        save_total_limit=1,
    )
    arguments.gradient_accumulation_steps = accumulation_steps(
        config.prompts * config.num_generations,
        config.micro_batch_size * config.updates,
        arguments.world_size,
    )
    return arguments


def make_trainer(
    config: AdaGRPOConfig, rows: Dataset, folder: Path, *, callback: RunCallback | None = None
) -> AdaGRPOTrainer:
    """The trainer of a run on the rows of `question_rows`; nothing is trained yet."""
    set_seed(config.seed)
    full = config.method == "full"
    dtype = trained_dtype(config.precision, full=full)
    model, tokenizer = load_policy(config.base, quantised=config.method == "qlora", dtype=dtype)
    if not full:
        model = add_lora(model, rank=config.rank, alpha=config.alpha)
    trainer = AdaGRPOTrainer(
        model=model,
        reward_funcs=accuracy_reward(config.rules, without=config.without),
        args=training_arguments(config, folder),
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[callback] if callback else [],
        scale_formats=config.algorithm == "ada_grpo",
        decay=config.decay,
        schedule=config.schedule,
        advantage_eps=config.advantage_eps,
        kl=config.kl,
        group_mean=config.normaliser == "group",
    )
    prepare(trainer, config.precision)
    return trainer


def train_ada_grpo(
    config: AdaGRPOConfig,
    rows: Dataset,
    run: Run,
    *,
    stop_at: int | None = None,
    say: Callable[[str], None] | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """Train, or go on where the run folder stopped: the model, its tokenizer, and what it took.

    `stop_at` ends early on the schedule of the full run. Ctrl-C saves and raises KeyboardInterrupt; the same
    call then resumes. What was trained to the end before is loaded.
    """
    callback = RunCallback(run, say=say, stop_at=stop_at, shown=SHOWN)
    settings = asdict(config) | {"weights": fingerprint(config.base), "rows": digest(list(rows))}
    trainer, facts = train_once(
        run, settings, lambda: make_trainer(config, rows, run.checkpoint, callback=callback), callback
    )
    facts = {"config": asdict(config)} | facts | {"questions": len(rows)}
    if trainer:
        return trainer.model.eval(), trainer.processing_class, facts
    return *trained_policy(config, run.folder), facts


def train(config: Mapping[str, Any]) -> dict[str, Any]:
    """`train_ada_grpo` as `lib.launch` calls it, in one process or several; returns what it took.

    `config`: "ada_grpo" (fields of AdaGRPOConfig), "rows" (JSONL file of `question_rows`), and the "folder".
    """
    lines = Path(config["rows"]).read_text(encoding="utf-8").splitlines()
    rows = Dataset.from_list([json.loads(line) for line in lines])
    run = Run(Path(config["folder"]), config)
    run.folder.mkdir(parents=True, exist_ok=True)
    _, _, facts = train_ada_grpo(AdaGRPOConfig(**config["ada_grpo"]), rows, run, say=print)
    return facts


def trained_policy(config: AdaGRPOConfig, folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The policy that a finished run left in its folder, its adapter merged if it has one."""
    result = folder / "checkpoint" / "result"
    if config.method == "full":
        return load_policy(result)
    dtype = getattr(torch, config.precision)
    _, tokenizer = load_policy(config.base, dtype=dtype)
    quantised = config.method == "qlora"
    return merge_adapter(config.base, result, quantised=quantised, dtype=dtype), tokenizer
