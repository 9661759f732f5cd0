"""Notebook 00: a model that is asked questions while it is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lib import dial
from lib.dial.pretrain import PretrainConfig, pretrain
from lib.engines.ask import Policy, ask
from lib.formats import ReasoningFormat
from lib.runs import ROOT, Run
from lib.tasks import Task, rollout_table

RECORDS = ROOT / "data" / "reference_runs" / "00_the_dial_world"


def checkpoints(
    config: PretrainConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    every: int,
    last: int,
) -> Iterator[tuple[int, PreTrainedModel, list[dict[str, Any]]]]:
    """The base's training up to step `last`, stopped every so many: the step, the model, the log so far.

    It is done anew each time, and nothing of it is kept.
    """
    with TemporaryDirectory() as place:
        run = Run(Path(place), {})
        for step in range(every, last + 1, every):
            model, _ = pretrain(replace(config, save_every=every), tokenizer, run, stop_at=step)
            yield step, model, run.metrics()


def asked(policy: Policy, tasks: Sequence[Task], *, max_new_tokens: int = 160) -> pd.DataFrame:
    """Each style forced: columns format, depth, readable (an answer could be read), right, count."""
    tables = []
    for style in ReasoningFormat:
        begun = dial.UNTAGGED_PREFIX[style]
        rollouts = ask(policy, tasks, prefix=begun, read=dial.read_untagged, max_new_tokens=max_new_tokens)
        rows = rollout_table(rollouts, tasks).assign(readable=lambda rows: rows["answer"].notna())
        counts = {"readable": ("readable", "sum"), "right": ("correct", "sum"), "count": ("correct", "size")}
        tables.append(rows.groupby("depth").agg(**counts).reset_index().assign(format=style.value))
    return pd.concat(tables, ignore_index=True)
