"""Notebook 02: batches that teach the wrong thing, and what becomes of a model that is trained on them.

python -m lib.studies.trainings 02 faults --seed 0
"""

from __future__ import annotations

import math

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_cosine_schedule_with_warmup, set_seed

from lib.dial.tasks import dial_tasks, gold_rows
from lib.dial.world import sample_questions
from lib.measure.modes import answer
from lib.methods.sft import SFTConfig
from lib.methods.sft_rows import IGNORED, encode
from lib.methods.training import load_trainable
from lib.policies.load import load_tokenizer
from lib.runs import Run, read_json
from lib.studies.qlora import batch_of, drift, padded
from lib.studies.records import RUNS, SFT_SHARE, Outcome
from lib.tasks import rollout_table

Encoded = list[dict[str, list[int]]]  # rows of input_ids and labels
PLACE = RUNS / "02_qlora_sft" / "faults"
BATCH = 32  # rows in a step
STUDY = (("sound", 60), ("no_end", 60), ("no_mask", 60), ("sound", 180), ("no_mask", 180))  # fault, steps


def sound(rows: Encoded) -> Encoded:
    """The rows as they are."""
    return rows


def without_end(rows: Encoded) -> Encoded:
    """Rows that stop at their last tag."""
    return [{name: ids[:-1] for name, ids in row.items()} for row in rows]


def with_masked_end(rows: Encoded) -> Encoded:
    """Rows whose end has no label, as where padding is the end token and is masked by its id."""
    return [row | {"labels": [*row["labels"][:-1], IGNORED]} for row in rows]


def without_mask(rows: Encoded) -> Encoded:
    """Rows with loss on the prompt, too."""
    return [row | {"labels": row["input_ids"]} for row in rows]


FAULTS = {"sound": sound, "no_end": without_end, "pad_is_end": with_masked_end, "no_mask": without_mask}


def train_unchecked(
    config: SFTConfig, rows: Encoded, *, steps: int, size: int = BATCH
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, float]:
    """A policy trained on rows as they are, without the check of `make_trainer`, and its last loss."""
    set_seed(config.seed)
    model, tokenizer = load_trainable(config, config.new_tokens)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimiser, round(config.warmup_share * steps), steps)
    order = torch.randperm(len(rows))
    for step in range(steps):
        chosen = [rows[int(order[(step * size + k) % len(rows)])] for k in range(size)]
        loss = model.train()(**padded(chosen, tokenizer, model.device), use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    return model.eval(), tokenizer, loss.item()


def study(seed: int, run: Run) -> Outcome:
    """Every fault with one seed: what 400 test questions are answered with, the same for every seed."""
    config, tasks = SFTConfig.cpu(weights="lora", seed=seed), dial_tasks(400, seed=21)
    tokenizer = load_tokenizer(config.base)
    drawn = gold_rows(sample_questions(1200, seed=seed), seed=seed, sft_share=SFT_SHARE)
    rows = [encode(row, tokenizer) for row in drawn]
    watched = gold_rows(sample_questions(48, seed=0, split="validation"), seed=0)
    losses, tables = {}, []
    for fault, steps in STUDY:
        model, tokenizer, last = train_unchecked(config, FAULTS[fault](rows), steps=steps)
        batch = batch_of(watched, tokenizer, model.device)
        losses[f"{fault}, {steps} steps"] = {
            "last": last,
            "on completions": math.log(drift(model, model, batch)["perplexity"]),
        }
        rollouts = answer((model, tokenizer), tasks, temperature=1.0, seed=seed)
        run.keep_rollouts(f"{fault}_{steps}", rollouts)
        tables.append(_small(rollout_table(rollouts, tasks)).assign(fault=fault, steps=steps))
    answers = pd.concat(tables, ignore_index=True)
    return Outcome(losses, {"config": config.as_json()}, model, tokenizer, {"answers": answers}, log_rows=0)


def _small(table: pd.DataFrame) -> pd.DataFrame:
    kept = table[["task_id", "depth", "correct", "truncated", "tokens"]].rename(columns={"task_id": "id"})
    return kept.assign(valid=table["used"] != "invalid").astype({"correct": bool, "tokens": "int16"})


def read_faults() -> tuple[pd.DataFrame, pd.DataFrame]:
    """The shipped runs: a row per answer, with fault, steps and seed; and the losses, a row per training."""
    answers, losses = [], []
    for folder in sorted(PLACE.glob("seed_*")):
        seed = int(folder.name.removeprefix("seed_"))
        answers.append(pd.read_parquet(folder / "answers.parquet").assign(seed=seed))
        found = pd.DataFrame(read_json(folder / "summary.json")).T
        losses.append(found.rename_axis("trained").reset_index().assign(seed=seed))
    return pd.concat(answers, ignore_index=True), pd.concat(losses, ignore_index=True)
