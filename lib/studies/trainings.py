"""Make the runs behind the published numbers, one method and seed at a time.

python -m lib.studies.trainings 02 qlora --seed 0 --ship dial-sft

Writes summary.json (keys as in the notebook's metrics.json), metrics.jsonl and provenance.json to
data/reference_runs/<notebook>/<method>/seed_<seed>/. A run that was cut short goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lib.dial.tasks import dial_tasks, gold_rows
from lib.dial.world import MAX_DEPTH, sample_questions
from lib.measure.evaluation import ask_in_every_format
from lib.measure.modes import answer
from lib.methods.sft import SFTConfig, train_sft
from lib.policies.adapters import merge_adapter
from lib.policies.load import CHECKPOINTS
from lib.policies.save import save_policy
from lib.runs import Run, provenance, read_json, start_run, write_atomically, write_json
from lib.studies import faults
from lib.studies.arm_modes import inference_modes
from lib.studies.backbones import backbone
from lib.studies.causes import ada_grpo
from lib.studies.qlora_tables import format_report
from lib.studies.records import RUNS, SFT_SHARE, Outcome
from lib.studies.shared import decision_states, probe_accuracy
from lib.studies.slips import slips
from lib.studies.strictness import strict_or_not
from lib.studies.thinking_runs import adaptthink
from lib.tasks import rollout_table

DETAILS = (
    "completions/",
    "runtime",
    "samples_per_second",
    "steps_per_second",
    "clip_ratio/low",
    "clip_ratio/high",
    "rewards/",
    "num_tokens",
    "epoch",
)


def sft(method: str, seed: int, run: Run) -> Outcome:
    """Notebook 02: dial-base taught the four formats by "qlora", "lora" or "full"; "faults" spoils it."""
    if method == "faults":
        return faults.study(seed, run)
    faster: dict[str, Any] = {"learning_rate": 1e-3} if method == "full" else {}
    config = SFTConfig.cpu(weights=method, seed=seed, **faster)
    rows = gold_rows(sample_questions(2400, seed=seed), seed=seed, sft_share=SFT_SHARE)
    validation_rows = gold_rows(sample_questions(64, seed=seed, split="validation"), seed=seed)
    model, tokenizer, facts = train_sft(config, rows, validation_rows, run, say=print)
    if method != "full":
        model = merge_adapter(config.base, run.checkpoint / "result", quantised=method == "qlora")
    tasks = dial_tasks(1500, seed=seed + 21)
    graded = dial_tasks(1200, seed=seed + 22, depths=range(1, MAX_DEPTH + 1), distinct=True)
    free = answer((model, tokenizer), tasks, temperature=1.0, seed=seed)
    forced = ask_in_every_format((model, tokenizer), graded)
    run.keep_rollouts("free", free)
    run.keep_rollouts("forced", forced)
    report: dict[str, Any] = format_report(rollout_table(free, tasks), rollout_table(forced, graded))
    states = decision_states(model, tokenizer, [task.prompt for task in tasks])
    report["probe_accuracy"] = probe_accuracy(states, [task.tier for task in tasks])
    return Outcome(report, facts, model, tokenizer)


def formats_by_rl(method: str, seed: int, run: Run) -> Outcome:
    """Notebook 03: dial-sft by RL in all variants, its slips, and the same story from another width."""
    if method == "slips":
        return slips(seed, run)
    return (backbone if method.startswith("backbone_") else ada_grpo)(method, seed, run)


EXPERIMENTS: dict[str, tuple[str, Callable[[str, int, Run], Outcome]]] = {
    "01": ("01_data_formatting", strict_or_not),
    "02": ("02_qlora_sft", sft),
    "03": ("03_ada_grpo", formats_by_rl),
    "04": ("04_inference_modes", inference_modes),
    "05": ("05_adaptthink", adaptthink),
}


def make(number: str, method: str, seed: int, *, ship: str | None = None) -> Path:
    """Run one experiment, write its records, and ship its policy as a checkpoint if asked."""
    notebook, experiment = EXPERIMENTS[number]
    place = Path(notebook) / method / f"seed_{seed}"
    run = start_run(str(place), "reference", {"method": method, "seed": seed})
    outcome = experiment(method, seed, run)
    facts = {"command": f"python -m lib.studies.trainings {number} {method} --seed {seed}", "seed": seed}
    facts |= outcome.facts
    write_json(RUNS / place / "summary.json", outcome.summary)
    write_json(RUNS / place / "provenance.json", provenance(**facts))
    for name, table in outcome.tables.items():
        write_atomically(RUNS / place / f"{name}.parquet", table.to_parquet(index=False, compression="zstd"))
    if outcome.log_rows and (logged := run.metrics()):
        lines = [json.dumps(row) + "\n" for row in thinned(logged, outcome.log_rows)]
        write_atomically(RUNS / place / "metrics.jsonl", "".join(lines))
    if ship:
        save_policy(outcome.model, outcome.tokenizer, CHECKPOINTS / ship, **facts)
    return RUNS / place


def read_runs(number: str, method: str) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """What the shipped runs of a method logged, a row per step with its `seed`, and their summaries."""
    folders = sorted((RUNS / EXPERIMENTS[number][0] / method).glob("seed_*"))
    logs = [
        pd.read_json(folder / "metrics.jsonl", lines=True).assign(seed=int(folder.name[5:]))
        for folder in folders
        if (folder / "metrics.jsonl").exists()  # what was asked as it is, or tried, has none
    ]
    summaries = [read_json(folder / "summary.json") for folder in folders]
    return pd.concat(logs, ignore_index=True) if logs else pd.DataFrame(), summaries


def thinned(rows: Sequence[Mapping[str, float]], most: int) -> list[dict[str, float]]:
    """Evaluations as they are, and of training at most `most` means of rows that follow one another.

    Five digits, no details.
    """
    is_evaluation = [any(name.startswith("eval_") for name in row) for row in rows]
    evaluated, trained = (
        [r for r, e in zip(rows, is_evaluation, strict=True) if e == kind] for kind in (1, 0)
    )
    table = pd.DataFrame(trained)
    windows = table.groupby(table.index // max(1, math.ceil(len(table) / most)))
    means = windows.mean().assign(step=windows["step"].last()) if trained else table
    kept = [*evaluated, *(row.dropna().to_dict() for _, row in means.iterrows())]
    return [
        {
            name: float(f"{value:.5g}")
            for name, value in row.items()
            if not name.removeprefix("eval_").startswith(DETAILS)
        }
        for row in sorted(kept, key=lambda row: row["step"])
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebook", choices=EXPERIMENTS, help="the notebook's number")
    parser.add_argument("method")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ship", metavar="NAME", help="save the policy to data/checkpoints/NAME")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(make(given.notebook, given.method, given.seed, ship=given.ship))


if __name__ == "__main__":
    main()
