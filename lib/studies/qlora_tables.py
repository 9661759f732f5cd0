"""The tables of notebook 02: what rounding and merging did, the shipped runs, and a reader's own."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lib.dial import Question, reach, untagged_response
from lib.engines.ask import Policy
from lib.formats import ReasoningFormat
from lib.measure.evaluation import FORMATS, ask_in_every_format, format_shares
from lib.measure.intervals import wilson_interval
from lib.measure.modes import answer
from lib.runs import read_json
from lib.studies.paired import bootstrap_paired
from lib.studies.qlora import batch_of, drift
from lib.studies.records import RUNS
from lib.studies.shared.figures import NAMES
from lib.tasks import Rollout, Task, rollout_table

# ---- rounding and merging --------------------------------------------------------------------------


def rounded(model: PreTrainedModel, rounding: Callable[[torch.Tensor], torch.Tensor]) -> PreTrainedModel:
    """A copy of a model with every matrix that QLoRA quantises rounded."""
    model = copy.deepcopy(model)
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and name != "lm_head":
            layer.weight.data = rounding(layer.weight.data)
    return model


def wounds(
    base: PreTrainedModel,
    others: Mapping[str, PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
) -> pd.DataFrame:
    """KL(base || other), in nats a token, on the base's own words in each style within its reach.

    "other choice" is the share of tokens where another one is now the likeliest, over all styles.
    """
    batches = {}
    for format in ReasoningFormat:
        texts = [
            {"prompt": question.prompt, "completion": untagged_response(question, format)}
            for question in questions
            if question.depth <= reach(format)
        ]
        batches[NAMES[format]] = batch_of(texts, tokenizer, base.device)
    lines = {}
    for name, other in others.items():
        found = {style: drift(base, other, batch) for style, batch in batches.items()}
        lines[name] = {style: one["kl"] for style, one in found.items()}
        lines[name]["other choice"] = statistics.mean(one["other_choice"] for one in found.values())
    return pd.DataFrame(lines).T


def merges(
    apart: PeftModel,
    ways: Mapping[str, PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, str]],
) -> pd.DataFrame:
    """How far each way to merge is from base and adapter kept apart, on rows (see `drift`)."""
    batch = batch_of(rows, tokenizer, apart.device)
    return pd.DataFrame({way: drift(apart, model, batch) for way, model in ways.items()}).T


def merged_answers(
    ways: Mapping[str, Policy], asked: Sequence[Task], forced: Sequence[Task], *, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What each way answers freely at temperature 1: valid and right; and its answers in every format."""
    lines, tables = {}, []
    for way, policy in ways.items():
        sampled = rollout_table(answer(policy, asked, temperature=1.0, seed=seed), asked)
        lines[way] = {"valid": (sampled["used"] != "invalid").mean(), "right": sampled["correct"].mean()}
        tables.append(rollout_table(ask_in_every_format(policy, forced), forced).assign(way=way))
    return pd.DataFrame(lines).T, pd.concat(tables)


# ---- runs ------------------------------------------------------------------------------------------


def valid_share(rollouts: Sequence[Rollout]) -> tuple[float, float, float]:
    """The share of valid responses, and its 95 % Wilson interval: (share, low, high)."""
    valid = sum(rollout.answer is not None for rollout in rollouts)
    return valid / len(rollouts), *wilson_interval(valid, len(rollouts))


def format_report(free: pd.DataFrame, forced: pd.DataFrame) -> dict[str, Any]:
    """How a policy uses its formats and how far each one reaches, as numbers for a metrics file.

    From what it answered as it liked: share of valid responses, shares of the formats per tier, accuracy,
    mean tokens. From `ask_in_every_format`: accuracy by depth, or by tier without depths.
    """
    valid = int((free["used"] != "invalid").sum())
    level = "depth" if forced["depth"].notna().all() else "tier"
    rates = forced.groupby(["mode", level], sort=False)["correct"].mean()
    return {
        "valid_share": valid / len(free),
        "valid_interval": list(wilson_interval(valid, len(free))),
        "format_share": {tier: row.to_dict() for tier, row in format_shares(free).iterrows()},
        "accuracy": float(free["correct"].mean()),
        "mean_tokens": float(free["tokens"].mean()),
        f"accuracy_by_{level}": {
            mode: rates[mode].sort_index().tolist() if level == "depth" else rates[mode].to_dict()
            for mode in FORMATS
        },
        "questions": [len(free), len(forced) // len(FORMATS)],
    }


def shipped(method: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Numbers and facts of the shipped run of "qlora", "lora" or "full"."""
    folder = RUNS / "02_qlora_sft" / method / "seed_0"
    return read_json(folder / "summary.json"), read_json(folder / "provenance.json")


def column(report: Mapping[str, Any], took: Mapping[str, Any]) -> dict[str, Any]:
    """One training: what it took, and what came of it."""
    adam = 12 * took["trained_parameters"] / 2**20  # a gradient and Adam's two numbers, 4 bytes each
    return {
        "steps": took["steps"],
        "rows": took["rows"],
        "trained parameters": f"{took['trained_parameters']:,}",
        "model in memory (MB)": took["model_mb"],
        "with gradients and Adam (MB)": round(took["model_mb"] + adam, 2),
        "validation perplexity": round(took["perplexity"], 4),
        "valid": "{:.1%} [{:.1%}, {:.1%}]".format(report["valid_share"], *report["valid_interval"]),
        "accuracy": f"{report['accuracy']:.1%}",
        "mean tokens": round(report["mean_tokens"], 1),
    }


def paired_difference(ours: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """Ours minus theirs on the same questions, one run each: rows of `rollout_table`; 95 % intervals."""
    left, right = (t.assign(id=t["task_id"], valid=t["used"] != "invalid") for t in (ours, theirs))
    named = {"valid": "valid", "accuracy": "correct", "mean tokens": "tokens"}
    found = {name: bootstrap_paired(left, right, measured) for name, measured in named.items()}
    return pd.DataFrame(found, index=["difference", "low", "high"]).T


def exercise_runs(folder: Path) -> pd.DataFrame:
    """The named runs of notebook 02 in its run folder: what was changed, and what came of it."""
    found = []
    for path in sorted(folder.glob("*/metrics.json")):
        values, metrics = (read_json(path.with_name(name)) for name in ("config.json", "metrics.json"))
        report = metrics[values["WEIGHTS"]]
        right = {
            f"{format} within reach": statistics.mean(rates[: reach(ReasoningFormat(format))])
            for format, rates in report.get("accuracy_by_depth", {}).items()
        }
        names = ("LORA_RANK", "WEIGHTING", "NEW_TOKENS")
        found.append({"run": path.parent.name} | {name: values[name] for name in names} | right)
    return pd.DataFrame(found) if found else pd.DataFrame(columns=["run", "what was changed"])
