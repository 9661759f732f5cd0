"""Build, train, resume and load: the same for every method."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import trl
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from lib.methods import from_json
from lib.methods.base import MethodConfig, TrainingConfig
from lib.methods.callbacks import RunCallback
from lib.methods.readings import READINGS
from lib.methods.rewards import accuracy_reward
from lib.methods.trainer import MethodTrainer
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

LOSSES = {"batch": "dapo", "micro_batch": "bnpo", "group": "dr_grpo", "response": "grpo"}
Rows = Sequence[Mapping[str, Any]]


def training_arguments(config: MethodConfig, folder: Path, *, watched: int = 0) -> trl.GRPOConfig:
    """The configuration as TRL writes it, for all processes; `watched` rows are evaluated."""
    updates = config.batches * config.updates
    falling = {"lr_scheduler_kwargs": {"num_decay_steps": round(config.cooldown * updates)}}
    evaluates = config.eval_every and watched
    options = {
        **shared_arguments(folder, seed=config.seed, precision=config.precision),
        "max_steps": updates * config.trainer.get("num_iterations", 1),
        "per_device_train_batch_size": config.micro_batch_size,
        "per_device_eval_batch_size": max(1, watched),
        "num_generations": config.num_generations,
        "num_generations_eval": 1,
        "generation_batch_size": config.prompts * config.num_generations,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "warmup_stable_decay" if config.cooldown else config.lr_scheduler_type,
        **(falling if config.cooldown else {}),
        "weight_decay": config.weight_decay,
        "max_completion_length": config.max_completion_length,
        "temperature": config.temperature,
        "epsilon": config.epsilon,
        "beta": config.beta,
        "use_bias_correction_kl": False,
        "entropy_coef": config.entropy_coef,
        "loss_type": LOSSES[config.normaliser],
        "gradient_checkpointing": config.gradient_checkpointing,
        "logging_steps": 1,
        "eval_strategy": "steps" if evaluates else "no",
        "eval_steps": config.eval_every * config.updates if evaluates else None,
        "eval_on_start": bool(evaluates),
        "save_steps": config.save_every * config.updates,
        "save_total_limit": 1,
    }
    arguments = trl.GRPOConfig(**options | dict(config.trainer))
    arguments.gradient_accumulation_steps = accumulation_steps(
        config.prompts * config.num_generations,
        config.micro_batch_size * config.updates,
        arguments.world_size,
    )
    return arguments


def build(
    config: MethodConfig,
    rows: Rows,
    run: Run,
    *,
    validation_rows: Rows = (),
    callback: RunCallback | None = None,
    reward: Callable[..., list[float]] | None = None,
) -> MethodTrainer:
    """The trainer of a run on rows as of `lib.tasks.task_rows`; nothing is trained yet.

    `reward` says what is right, in TRL's signature, in place of the reading.
    """
    for name in config.needs:
        if not all(name in row for row in rows):
            raise ValueError(f"{config.name} needs rows with a column {name!r}")
    set_seed(config.seed)
    arguments = training_arguments(config, run.checkpoint, watched=len(validation_rows))
    model, tokenizer = load_trainable(config)
    reading = READINGS[config.reading](tokenizer, config)
    trainer = MethodTrainer(
        config,
        reading,
        model=model,
        reward_funcs=reward or accuracy_reward(reading.is_right),
        args=arguments,
        train_dataset=Dataset.from_list([dict(row) for row in rows]),
        eval_dataset=Dataset.from_list([dict(row) for row in validation_rows]) if validation_rows else None,
        processing_class=tokenizer,
        callbacks=[callback] if callback else [],
    )
    prepare(trainer, config.precision)
    return trainer


def load_trainable(config: TrainingConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base as it is trained: whole, or with LoRA, on NF4 where asked."""
    full = config.weights == "full"
    dtype = trained_dtype(config.precision, full=full)
    model, tokenizer = load_policy(config.base, quantised=config.weights == "qlora", dtype=dtype)
    if not full:
        model = add_lora(model, rank=config.lora_rank, alpha=2 * config.lora_rank)
    return model, tokenizer


def fit(
    config: MethodConfig,
    rows: Rows,
    run: Run,
    *,
    validation_rows: Rows = (),
    stop_at: int | None = None,
    say: Callable[[str], None] | None = None,
    reward: Callable[..., list[float]] | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """Train, or go on where the run folder stopped: the model, its tokenizer, and what it took.

    The result is saved to `run.checkpoint / "result"`. `stop_at` ends early on the schedule of the full run.
    Ctrl-C saves and raises KeyboardInterrupt; the same call then resumes. What was trained to the end before
    is loaded.
    """
    callback = RunCallback(run, say=say, stop_at=stop_at, shown=config.shown)
    settings = config.as_json() | {
        "start": fingerprint(config.base),
        "rows": digest(list(rows)),
        "validation_rows": digest(list(validation_rows)),
        "reward": _source(reward) if reward else "",
    }

    def make() -> MethodTrainer:
        return build(config, rows, run, validation_rows=validation_rows, callback=callback, reward=reward)

    trainer, facts = train_once(run, settings, make, callback)
    facts = {"config": config.as_json()} | facts | {"questions": len(rows)}
    if trainer:
        return trainer.model.eval(), trainer.processing_class, facts
    return *load_trained(config, run), facts


def _source(function: Callable[..., Any]) -> str:
    """The text of a function, so that a changed one is another setting; without one it is always another."""
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return repr(function)


def train(call: Mapping[str, Any]) -> dict[str, Any]:
    """`fit` as `lib.engines.launch` calls it, in one process or several; returns what it took.

    `call`: "config" (of `as_json`), "rows" and perhaps "validation_rows" (JSONL files), and the "folder".
    """
    run = Run(Path(call["folder"]), call)
    run.folder.mkdir(parents=True, exist_ok=True)
    rows, watched = (read_rows(call.get(name)) for name in ("rows", "validation_rows"))
    return fit(from_json(call["config"]), rows, run, validation_rows=watched, say=print)[2]


def read_rows(path: str | None) -> list[dict[str, Any]]:
    lines = Path(path).read_text(encoding="utf-8").splitlines() if path else []
    return [json.loads(line) for line in lines]


def load_trained(config: TrainingConfig, run: Run) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The policy that a finished run left, with its tokenizer; an adapter is merged."""
    quantised, result = config.weights == "qlora", run.checkpoint / "result"
    if config.weights == "full":
        return load_policy(result, dtype=config.dtype)
    _, tokenizer = load_policy(config.base, dtype=config.dtype)
    return merge_adapter(config.base, result, quantised=quantised, dtype=config.dtype), tokenizer
