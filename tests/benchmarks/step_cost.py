"""What a step costs: paired steps, in one process, on the same model; medians of the paired ratios.

python -m tests.benchmarks.step_cost --steps 20

The trainers of a pair take their steps in turn, so that what else the machine does hits both alike.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import trl

from lib.dial.tasks import dial_tasks
from lib.methods import METHODS
from lib.methods.base import MethodConfig
from lib.methods.fit import build, training_arguments
from lib.methods.trainer import MethodTrainer
from lib.methods.training import load_trainable, no_noise
from lib.policies.load import load_policy
from lib.runs import Run
from lib.tasks import task_rows
from lib.thinking import thinking_tasks

TOKENS = 60  # of every response, where all are of one length


class Padded(MethodTrainer):
    """Our trainer as it was: responses by `generate`, and every pass as wide as the longest of them."""

    _get_per_token_logps_and_entropies = trl.GRPOTrainer._get_per_token_logps_and_entropies

    def _ours(self) -> bool:
        return False


def ours(method: str, folder: Path, **changes: Any) -> MethodTrainer:
    """The trainer of a method in its shipped configuration for the dial world."""
    config = METHODS[method].cpu(batches=1000, **changes)
    tasks = dial_tasks(960, split="train", seed=0)
    if config.reading == "thinking":
        tasks = thinking_tasks(tasks, load_policy(config.base)[1])
    return build(config, [row | {"reference_accuracy": 0.5} for row in task_rows(tasks)], Run(folder, {}))


def padded(method: str, folder: Path) -> MethodTrainer:
    """The same without what this benchmark is about."""
    trainer = ours(method, folder)
    trainer.__class__ = Padded
    return trainer


def trls(mine: MethodTrainer, config: MethodConfig, folder: Path) -> trl.GRPOTrainer:
    """TRL's own trainer on the same rows."""
    model, tokenizer = load_trainable(config)
    return trl.GRPOTrainer(
        model=model,
        reward_funcs=mine.reward_funcs,
        args=training_arguments(config, folder),
        train_dataset=mine.train_dataset,
        processing_class=tokenizer,
    )


def of_one_length(trainer: trl.GRPOTrainer) -> trl.GRPOTrainer:
    """No token ends a response."""
    trainer.eos_token_ids = []
    trainer.generation_config.eos_token_id = trainer.model.generation_config.eos_token_id = None
    return trainer


def pairs(folder: Path) -> dict[str, tuple[trl.GRPOTrainer, trl.GRPOTrainer]]:
    """Ours and what it is held against."""
    found = {
        "Ada-GRPO against itself with padding, shipped configuration": (
            ours("ada_grpo", folder / "a"),
            padded("ada_grpo", folder / "b"),
        )
    }
    for method, caps in (("ada_grpo", {}), ("adaptthink", {"max_nothinking_length": TOKENS})):
        mine = ours(method, folder / method, max_completion_length=TOKENS, **caps)
        theirs = trls(mine, mine.method, folder / f"{method}-trl")
        found[f"{method} against TRL's GRPO, {TOKENS} tokens each"] = (
            of_one_length(mine),
            of_one_length(theirs),
        )
    return found


def step(trainer: trl.GRPOTrainer, batches: Any) -> float:
    """The seconds of one step: responses, rewards, loss, gradient, update."""
    begun = time.perf_counter()
    trainer.training_step(trainer.model, next(batches), None)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    return time.perf_counter() - begun


def paired(trainers: tuple[trl.GRPOTrainer, trl.GRPOTrainer], steps: int, warm_up: int = 3) -> list[float]:
    """Median of the paired ratios, and the median seconds of each."""
    for trainer in trainers:
        trainer.create_optimizer_and_scheduler(1000)
        trainer.state.max_steps, trainer.current_gradient_accumulation_steps = 1000, 1
        trainer.model.train()
    batches = [iter(trainer.get_train_dataloader()) for trainer in trainers]
    times: list[list[float]] = [[], []]
    for number in range(warm_up + steps):
        for which in (0, 1) if number % 2 else (1, 0):
            seconds = step(trainers[which], batches[which])
            if number >= warm_up:
                times[which].append(seconds)
    ratios = [first / second for first, second in zip(*times, strict=True)]
    return [statistics.median(values) for values in (ratios, *times)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, no_noise():
        for name, trainers in pairs(Path(folder)).items():
            ratio, first, second = paired(trainers, steps)
            print(f"{name}: {first:.3f} s and {second:.3f} s a step, ratio {ratio:.3f}", flush=True)


if __name__ == "__main__":
    main()
