"""Two baselines of AdaptThink (section 4.1) that learn from samples of the reference, without RL.

The paper reports both and releases neither; here they follow its one-sentence descriptions.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import trl
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from lib.engines.ask import Policy, ask
from lib.methods.base import TrainingConfig
from lib.methods.callbacks import RunCallback
from lib.methods.training import load_trainable, no_noise, prepare, run_training, trainer_arguments
from lib.policies.load import load_policy
from lib.runs import Run
from lib.tasks import Rollout, Task, rollout_table
from lib.thinking import CLOSE, NOTHINKING, read_thinking


def sample_modes(
    policy: Policy, tasks: Sequence[Task], *, samples: int, seed: int = 0, max_new_tokens: int = 160
) -> list[Rollout]:
    """`samples` free responses to each task, and as many that skip thinking, all at temperature 1."""
    asked = [task for task in tasks for _ in range(samples)]
    options: dict[str, Any] = {"read": read_thinking, "temperature": 1.0, "seed": seed}
    options["max_new_tokens"] = max_new_tokens
    free = ask(policy, asked, **options)
    return free + ask(policy, asked, prefix=CLOSE, mode=NOTHINKING, **options)


def mixed_rows(
    rollouts: Sequence[Rollout], tasks: Sequence[Task], *, margin: float = 0.0, seed: int = 0
) -> list[dict[str, str]]:
    """RFT-MixThinking: the right responses of one mode to each question, as SFT rows; none that was cut off.

    NoThinking where it is right as often as Thinking or more often, else Thinking; with a `margin` also where
    it is less often right by no more than that.
    """
    rows, prompts = [], {task.id: task.prompt for task in tasks}
    for task_id, group in rollout_table(rollouts, tasks).groupby("task_id", sort=False):
        is_skipped = group["format"] == NOTHINKING
        skipped, thought = group[is_skipped], group[~is_skipped]
        gain = skipped["correct"].mean() + margin - thought["correct"].mean()
        skips = len(skipped) > 0 and (thought.empty or gain >= 0)
        kept = skipped if skips else thought
        for text in kept.loc[kept["correct"] & ~kept["truncated"], "text"]:
            rows.append({"prompt": prompts[task_id], "completion": text})
    random.Random(seed).shuffle(rows)
    return rows


def shortest_pairs(
    rollouts: Sequence[Rollout], tasks: Sequence[Task], *, seed: int = 0
) -> list[dict[str, str]]:
    """DPO pairs among free responses: the shortest right one is chosen over the longest one.

    A question whose responses are all of one length, or all wrong, gives none.
    """
    pairs, prompts = [], {task.id: task.prompt for task in tasks}
    found = rollout_table(rollouts, tasks)
    found = found[~found["truncated"] & (found["format"] != NOTHINKING)]
    for task_id, group in found.groupby("task_id", sort=False):
        right = group[group["correct"]]
        if right.empty or right["tokens"].min() == group["tokens"].max():
            continue
        chosen, rejected = right.loc[right["tokens"].idxmin()], group.loc[group["tokens"].idxmax()]
        texts = {"chosen": chosen["text"], "rejected": rejected["text"]}
        pairs.append({"prompt": prompts[task_id], **texts})
    random.Random(seed).shuffle(pairs)
    return pairs


class DPOConfig(TrainingConfig):
    """TRL's options for DPO, by the fields that all trainings share."""

    arguments: ClassVar[type] = trl.DPOConfig


def train_dpo(
    base: str,
    pairs: Sequence[Mapping[str, str]],
    run: Run,
    *,
    steps: int,
    learning_rate: float = 1e-4,
    batch_size: int = 32,
    beta: float = 0.1,
    seed: int = 0,
    say: Callable[[str], None] | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Train all weights with TRL's DPO trainer in full precision; the reference is the base itself."""
    if not pairs:
        raise ValueError("there are no pairs to train on: no question has right responses of two lengths")
    set_seed(seed)
    config = DPOConfig(
        base=base,
        seed=seed,
        learning_rate=learning_rate,
        micro_batch_size=batch_size,
        precision="float32",
        gradient_checkpointing=False,
    )
    options = {"max_steps": steps, "beta": beta, "logging_steps": 5, "save_strategy": "no"}
    with no_noise():
        model, tokenizer = load_trainable(config)
        trainer = trl.DPOTrainer(
            model=model,
            ref_model=load_policy(base)[0],
            args=trainer_arguments(config, run.checkpoint, batch_size, **options),
            train_dataset=Dataset.from_list(list(pairs)),
            processing_class=tokenizer,
        )
        prepare(trainer, config)
        run_training(trainer, run, RunCallback(run, say=say))
    return trainer.model.eval(), tokenizer
