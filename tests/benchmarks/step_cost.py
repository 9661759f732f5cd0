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
from lib.methods.ada_grpo import AdaGRPOConfig, AdaGRPOTrainer, question_rows, training_arguments
from lib.methods.rewards import accuracy_reward
from lib.methods.training import no_noise
from lib.policies.load import load_policy

TOKENS = 60  # of every response


def make(kind: type[trl.GRPOTrainer], folder: Path, **options: object) -> trl.GRPOTrainer:
    """A trainer of one kind on its own copy of the model, ready for its first step."""
    config = AdaGRPOConfig.cpu("dial-sft", batches=1000, max_completion_length=TOKENS)
    model, tokenizer = load_policy(config.base)
    arguments = training_arguments(config, folder)
    arguments.generation_kwargs = {"min_new_tokens": TOKENS}
    trainer = kind(
        model=model,
        reward_funcs=accuracy_reward(),
        args=arguments,
        train_dataset=question_rows(dial_tasks(960, split="train", seed=0)),
        processing_class=tokenizer,
        **options,
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
        trainers = (make(AdaGRPOTrainer, Path(folder, "ours")), make(trl.GRPOTrainer, Path(folder, "theirs")))
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
