"""Build and train: the same for every method."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import trl
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from lib.checked import identity
from lib.engines.vllm import import_vllm
from lib.methods import from_json
from lib.methods.base import MethodConfig, Progress
from lib.methods.readings import READINGS, accuracy_reward
from lib.methods.sft_rows import read_rows
from lib.methods.trainer import MethodTrainer
from lib.methods.training import Facts, Rows, load_trainable, prepare, train_policy, trainer_arguments
from lib.methods.with_vllm import OPTIONS, release, set_context
from lib.runs import Run

LOSSES = {"batch": "dapo", "micro_batch": "bnpo", "group": "dr_grpo", "response": "grpo"}


def training_arguments(config: MethodConfig, folder: Path, *, watched: int = 0) -> trl.GRPOConfig:
    """The configuration as TRL writes it, for all processes; `watched` rows are evaluated."""
    updates, responses = config.batches * config.updates, config.prompts * config.num_generations
    options = {"max_steps": updates * config.trainer.get("num_iterations", 1), "logging_steps": 1}
    options |= {"generation_batch_size": responses, "loss_type": LOSSES[config.normaliser]}
    options |= {"use_bias_correction_kl": False, "num_generations_eval": 1}
    options |= {"per_device_eval_batch_size": max(1, watched)}
    options |= {"save_steps": config.save_every * config.updates, "save_total_limit": 2}
    if config.cooldown:
        options["lr_scheduler_type"] = "warmup_stable_decay"
        options["lr_scheduler_kwargs"] = {"num_decay_steps": round(config.cooldown * updates)}
    if config.eval_every and watched:
        options |= {"eval_strategy": "steps", "eval_on_start": True}
        options["eval_steps"] = config.eval_every * config.updates
    if config.trainer.get("use_vllm"):
        options |= OPTIONS
    return trainer_arguments(config, folder, responses // config.updates, **options)


def build(
    config: MethodConfig,
    rows: Rows,
    run: Run,
    *,
    validation_rows: Rows = (),
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
    if arguments.use_vllm:
        import_vllm()  # before anything loads
    model, tokenizer = load_trainable(config)
    if arguments.use_vllm:
        most, start = model.config.max_position_embeddings, Progress(0, config.batches)
        set_context(arguments, config, start, [*rows, *validation_rows], tokenizer, most)
    reading = READINGS[config.reading](tokenizer, config)
    train_set, watched = (Dataset.from_list([dict(row) for row in some]) for some in (rows, validation_rows))
    data: dict[str, Any] = {"train_dataset": train_set, "eval_dataset": watched if validation_rows else None}
    data["reward_funcs"] = reward or accuracy_reward(reading.is_right, config.rules)
    named = data | {"model": model, "args": arguments, "processing_class": tokenizer}
    trainer = MethodTrainer(config, reading, **named)
    prepare(trainer, config)
    return trainer


def fit(
    config: MethodConfig,
    rows: Rows,
    run: Run,
    *,
    validation_rows: Rows = (),
    stop_at: int | None = None,
    say: Callable[[str], None] | None = None,
    reward: Callable[..., list[float]] | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Facts]:
    """Train, or go on where the run folder stopped: the model, its tokenizer, and what it took.

    The result is saved to `run.checkpoint / "result"`. `stop_at` ends early on the schedule of the full run.
    Ctrl-C saves, and the same call goes on from there. What was trained to the end before is loaded.
    """

    def describe(trainer: trl.GRPOTrainer) -> Facts:
        release(trainer)
        return {"questions": len(rows)}

    start = partial(build, config, rows, run, validation_rows=validation_rows, reward=reward)
    told: dict[str, Any] = {"say": say, "stop_at": stop_at, "reward": identity(reward) if reward else ""}
    return train_policy(config, rows, validation_rows, run, start, describe, merge=True, **told)


def train(call: Mapping[str, Any]) -> Facts:
    """`fit` as `lib.engines.launch` calls it, in one process or several; returns what it took.

    `call`: "config" (of `as_json`), "rows" and perhaps "validation_rows" (JSONL files), and the "folder".
    """
    run = Run(Path(call["folder"]), call)
    paths = (call.get(name) for name in ("rows", "validation_rows"))
    rows, watched = (read_rows(path, ()) if path else [] for path in paths)
    return fit(from_json(call["config"]), rows, run, validation_rows=watched, say=print)[2]
