"""Two baselines of AdaptThink (section 4.1) that learn from samples of the reference, without RL.

The paper reports both and releases neither; here they follow its one-sentence descriptions.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import trl
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from lib.measure.evaluation import respond
from lib.methods.callbacks import RunCallback
from lib.methods.training import no_noise, prepare, shared_arguments
from lib.policies.load import load_policy
from lib.runs import Run
from lib.thinking import CLOSE


def sample_modes(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    *,
    samples: int,
    seed: int = 0,
    max_new_tokens: int = 160,
) -> pd.DataFrame:
    """`samples` free responses to each row, and as many that skip thinking: `respond` with the prompts."""
    found = [
        respond(
            model,
            tokenizer,
            [row for row in rows for _ in range(samples)],
            prefix=prefix,
            seed=seed,
            max_new_tokens=max_new_tokens,
        )
        for prefix in ("", CLOSE)
    ]
    prompts = {row["id"]: row["prompt"] for row in rows}
    both = pd.concat(found, ignore_index=True)
    return both.assign(prompt=both["id"].map(prompts))


def mixed_rows(found: pd.DataFrame, *, seed: int = 0) -> list[dict[str, str]]:
    """RFT-MixThinking: the right responses of one mode to each question, as SFT rows; none that was cut off.

    NoThinking where it is right as often as Thinking or more often, else Thinking.
    """
    rows = []
    for _, group in found.groupby("id", sort=False):
        skipped, thought = group[group["nothinking"]], group[~group["nothinking"]]
        skips = len(skipped) > 0 and (thought.empty or skipped["correct"].mean() >= thought["correct"].mean())
        kept = skipped if skips else thought
        for _, row in kept[kept["correct"] & ~kept["truncated"]].iterrows():
            rows.append({"prompt": row["prompt"], "completion": row["response"]})
    random.Random(seed).shuffle(rows)
    return rows


def shortest_pairs(found: pd.DataFrame, *, seed: int = 0) -> list[dict[str, str]]:
    """DPO pairs among free responses: the shortest right one is chosen over the longest one.

    A question whose responses are all of one length, or all wrong, gives none.
    """
    pairs = []
    for _, group in found[~found["truncated"] & ~found["nothinking"]].groupby("id", sort=False):
        right = group[group["correct"]]
        if right.empty or right["tokens"].min() == group["tokens"].max():
            continue
        chosen, rejected = right.loc[right["tokens"].idxmin()], group.loc[group["tokens"].idxmax()]
        pairs.append(
            {
                "prompt": chosen["prompt"],
                "chosen": chosen["response"],
                "rejected": rejected["response"],
            }
        )
    random.Random(seed).shuffle(pairs)
    return pairs


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
    with no_noise():
        model, tokenizer = load_policy(base)
        arguments = trl.DPOConfig(
            **shared_arguments(run.checkpoint, seed=seed, precision="float32"),
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            learning_rate=learning_rate,
            beta=beta,
            gradient_checkpointing=False,
            logging_steps=5,
            save_strategy="no",
        )
        trainer = trl.DPOTrainer(
            model=model,
            ref_model=load_policy(base)[0],
            args=arguments,
            train_dataset=Dataset.from_list(list(pairs)),
            processing_class=tokenizer,
            callbacks=[RunCallback(run, say=say)],
        )
        prepare(trainer, "float32")
        trainer.train()
    return trainer.model.eval(), tokenizer
