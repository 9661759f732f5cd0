"""Notebook 00: a model that is asked questions while it is trained."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lib import dial
from lib.dial.pretrain import Corpus, Documents, PretrainConfig, pretrain
from lib.engines.ask import ask
from lib.formats import ReasoningFormat
from lib.policies.load import load_tokenizer
from lib.runs import ROOT, Run, provenance, start_run, write_atomically, write_json
from lib.tasks import Task, rollout_table

RECORDS = ROOT / "data" / "reference_runs" / "00_the_dial_world"
PER_DEPTH = 20  # questions asked at each checkpoint, per depth and style


class WorkedLines:
    """Documents (prompt, response) in which every operation is worked; document i is always the same."""

    def __init__(self, documents: int, *, seed: int, deepest: int):
        self.documents, self.seed, self.deepest = documents, seed, deepest

    def __len__(self) -> int:
        return self.documents

    def __getitem__(self, index: int) -> tuple[str, str]:
        rng = random.Random(f"worked|{self.seed}|{index}")
        depth = rng.randint(1, self.deepest)
        (question,) = dial.sample_questions(1, seed=rng.randrange(2**63), depths=[depth])
        return question.prompt, dial.untagged_response(question, ReasoningFormat.LONG_COT)


def without_pauses(text: str) -> str:
    """A question or a response of the corpus, without the words at which one would jot."""
    return " ".join(word for word in text.split(" ") if word not in dial.PAUSES.values())


class WithoutPauses:
    """The corpus of the base without *then* and *later*, in questions and in what is jotted."""

    def __init__(self, corpus: Documents):
        self.corpus = corpus

    def __len__(self) -> int:
        return len(self.corpus)

    def __getitem__(self, index: int) -> tuple[str, str]:
        prompt, response = self.corpus[index]
        return without_pauses(prompt), without_pauses(response)


def checkpoints(
    config: PretrainConfig,
    tokenizer: PreTrainedTokenizerBase,
    run: Run,
    steps: Sequence[int],
    *,
    corpus: Documents | None = None,
    say: Callable[[str], None] | None = None,
) -> Iterator[tuple[int, PreTrainedModel, Mapping[str, Any]]]:
    """Train to each of `steps` in turn and stop there: the step, the model, and what the stretch took."""
    for step in steps:
        model, facts = pretrain(config, tokenizer, run, corpus=corpus, stop_at=step, say=say)
        yield step, model, facts


def asked(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tasks: Sequence[Task]) -> pd.DataFrame:
    """Right answers by style and depth: columns format, depth, right, count."""
    rows = []
    for style in ReasoningFormat:
        begun = dial.UNTAGGED_PREFIX[style]
        table = rollout_table(ask((model, tokenizer), tasks, prefix=begun, read=dial.read_untagged), tasks)
        counts = table.groupby("depth")["correct"].agg(right="sum", count="size").reset_index()
        rows.append(counts.assign(format=style.value))
    return pd.concat(rows, ignore_index=True)[["format", "depth", "right", "count"]]


def record(kind: str, *, seed: int, last: int, every: int) -> None:
    """Train the base again up to step `last`, ask it every so many steps, and keep what it answered."""
    config, tokenizer = PretrainConfig(seed=seed), load_tokenizer("dial-base")
    depths = range(1, dial.MAX_DEPTH + 1)
    tasks = dial.dial_tasks(PER_DEPTH * len(depths), seed=seed, split="validation", depths=depths)
    corpus: Documents = Corpus(config)
    if kind == "without_pauses":
        corpus = WithoutPauses(corpus)
        tasks = [replace(task, prompt=without_pauses(task.prompt)) for task in tasks]
    run = start_run(f"00_the_dial_world/{kind}/seed_{seed}", "reference", {"kind": kind, "seed": seed})
    found, seconds = [], 0.0
    for step, model, facts in checkpoints(
        config, tokenizer, run, range(every, last + 1, every), corpus=corpus, say=print
    ):
        found.append(asked(model, tokenizer, tasks).assign(step=step))
        seconds += facts["seconds"]
    folder = RECORDS / kind / f"seed_{seed}"
    write_atomically(folder / "asked.csv", pd.concat(found).to_csv(index=False))
    lines = [json.dumps({"step": row["step"], "loss": round(row["loss"], 4)}) + "\n" for row in run.metrics()]
    write_atomically(folder / "metrics.jsonl", "".join(lines))
    command = f"python -m lib.studies.growing {kind} --seed {seed} --last {last}"
    write_json(folder / "provenance.json", provenance(command=command, seed=seed, seconds=round(seconds)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["asked", "without_pauses"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--last", type=int, default=1400, help="the step after which to stop")
    parser.add_argument("--every", type=int, default=100, help="steps between two askings")
    given = parser.parse_args()
    torch.set_num_threads(1)
    record(given.kind, seed=given.seed, last=given.last, every=given.every)


if __name__ == "__main__":
    main()
