"""Notebook 03: what one update does to the choice of format on questions that it never saw."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lib.dial.tasks import dial_tasks
from lib.dial.world import TIERS
from lib.formats import ReasoningFormat
from lib.methods.base import MethodConfig
from lib.methods.fit import fit
from lib.policies.load import load_policy
from lib.runs import Run
from lib.studies.records import SFT_SHARE
from lib.tasks import Task, task_rows


@torch.inference_mode()
def tag_probabilities(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tasks: Sequence[Task]
) -> pd.DataFrame:
    """P(tag | prompt): a row per task, a column per format; a tag is one token of the dial tokenizer."""
    tags = [tokenizer(f.prefix, add_special_tokens=False).input_ids[0] for f in ReasoningFormat]
    batch = tokenizer([task.prompt for task in tasks], return_tensors="pt", padding=True, padding_side="left")
    logits = model(**{name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}).logits
    found = logits[:, -1].float().softmax(-1)[:, tags].cpu()
    return pd.DataFrame(found.numpy(), columns=[f.value for f in ReasoningFormat])


def tag_shift(config: MethodConfig) -> pd.DataFrame:
    """Mean P(tag) on 300 validation questions before and after one update on hard questions alone.

    Rows: tier, format, before, after. The update is the first of `config`, with its questions by its seed.
    """
    tasks = dial_tasks(300, split="validation", seed=0)
    drawn = dial_tasks(
        config.prompts, split="train", seed=config.seed, sft_share=SFT_SHARE, depths=TIERS["hard"]
    )
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer, _ = fit(config, task_rows(drawn), Run(Path(folder), {}), stop_at=1)
    policies = {"before": load_policy(config.base), "after": (model, tokenizer)}
    tiers = [task.tier for task in tasks]
    means = {
        name: tag_probabilities(*policy, tasks).groupby(tiers, sort=False).mean().stack()
        for name, policy in policies.items()
    }
    return pd.DataFrame(means).rename_axis(["tier", "format"]).reset_index()
