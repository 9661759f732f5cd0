"""What Ada-GRPO adds to a step of TRL's GRPOTrainer: paired steps, in one process, on the same model.

python -m tests.benchmarks.step_cost --steps 30

Both trainers take their steps in turn, so that what else the machine does hits both alike, and both write
responses of the same length, so that only the work around them can differ.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
import trl

from lib.dial import dial_tasks
from lib.methods.ada_grpo import AdaGRPO
from lib.methods.fit import build, training_arguments
from lib.methods.training import no_noise
from lib.policies.load import load_policy
from lib.runs import Run
from lib.tasks import task_rows

TOKENS = 60  # of every response


def make(folder: Path, *, ours: bool) -> trl.GRPOTrainer:
    """Ours or TRL's trainer on its own copy of the model, ready for its first step."""
    options = {"generation_kwargs": {"min_new_tokens": TOKENS}}
    config = AdaGRPO.cpu("dial-sft", batches=1000, max_completion_length=TOKENS, trainer=options)
    rows = task_rows(dial_tasks(960, split="train", seed=0))
    trainer = build(config, rows, Run(folder, {}))
    if not ours:
        model, tokenizer = load_policy(config.base)
        trainer = trl.GRPOTrainer(
            model=model,
            reward_funcs=trainer.reward_funcs,
            args=training_arguments(config, folder),
            train_dataset=trainer.train_dataset,
            processing_class=tokenizer,
        )
    trainer.create_optimizer_and_scheduler(1000)
    trainer.state.max_steps = 1000
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def step(trainer: trl.GRPOTrainer, batches) -> float:
    """The seconds of one step: responses, rewards, loss, gradient, update."""
    begun = time.perf_counter()
    trainer.training_step(trainer.model, next(batches), None)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    return time.perf_counter() - begun


def paired_ratio(steps: int, warm_up: int = 3) -> tuple[float, float, float]:
    """Median of the paired ratios Ada-GRPO / GRPO, and the median seconds of each."""
    with tempfile.TemporaryDirectory() as folder, no_noise():
        trainers = [make(Path(folder, name), ours=name == "ours") for name in ("ours", "theirs")]
        batches = [iter(trainer.get_train_dataloader()) for trainer in trainers]
        times: list[list[float]] = [[], []]
        for number in range(warm_up + steps):
            for which in (0, 1) if number % 2 else (1, 0):
                seconds = step(trainers[which], batches[which])
                if number >= warm_up:
                    times[which].append(seconds)
    ratios = [ours / theirs for ours, theirs in zip(*times, strict=True)]
    return statistics.median(ratios), statistics.median(times[0]), statistics.median(times[1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    torch.set_num_threads(1)
    ratio, ours, theirs = paired_ratio(parser.parse_args().steps)
    print(f"Ada-GRPO {ours:.3f} s, TRL's GRPOTrainer {theirs:.3f} s a step; median of the ratios {ratio:.3f}")
