"""Notebook 00: a model that is asked questions while it is trained, and the record of the base's training."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lib import dial
from lib.dial.pretrain import PretrainConfig, pretrain
from lib.engines.ask import Policy, ask
from lib.formats import ReasoningFormat
from lib.policies.load import load_tokenizer
from lib.runs import ROOT, Run, provenance, write_atomically, write_json
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


def record(*, seed: int, last: int, every: int = 100, per_depth: int = 20) -> None:
    """Train the base again up to step `last`, ask it every so many steps, and keep what it answered."""
    tokenizer, found = load_tokenizer("dial-base"), []
    depths = range(1, dial.MAX_DEPTH + 1)
    tasks = dial.dial_tasks(per_depth * len(depths), seed=seed, split="validation", depths=depths)
    for step, model, _ in checkpoints(PretrainConfig(seed=seed), tokenizer, every=every, last=last):
        found.append(asked((model, tokenizer), tasks).assign(step=step))
        print(f"step {step}", flush=True)
    folder = RECORDS / "asked" / f"seed_{seed}"
    write_atomically(folder / "asked.csv", pd.concat(found).to_csv(index=False))
    command = f"python -m lib.studies.growing asked --seed {seed} --last {last}"
    write_json(folder / "provenance.json", provenance(command=command, seed=seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("record", choices=["asked"], help="what to make under data/reference_runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--last", type=int, default=1400, help="the step after which to stop")
    given = parser.parse_args()
    torch.set_num_threads(1)
    record(seed=given.seed, last=given.last)


if __name__ == "__main__":
    main()
