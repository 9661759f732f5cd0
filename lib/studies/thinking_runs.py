"""Notebook 05's runs: AdaptThink on the dial world, what it is compared with, and remedies.

python -m lib.studies.trainings 05 adaptthink --seed 0
python -m lib.studies.trainings 05 start/sequence_4e-04 --seed 0

Seeds differ in training questions, in the reference's samples of them, and in all random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch

from lib.dial import thinker
from lib.dial.tasks import dial_tasks
from lib.dial.world import MAX_DEPTH, sample_questions
from lib.methods.adaptthink import VARIANTS, AdaptThink
from lib.methods.base import MethodConfig
from lib.methods.fit import fit
from lib.methods.sft import train_sft
from lib.methods.thinking_rewards import LengthReward, NoThinkingBonus
from lib.policies.load import load_policy
from lib.runs import Run, read_json, write_json
from lib.studies.records import Outcome
from lib.studies.reference_samples import sample_reference
from lib.studies.thinking_answers import PLACE, ask_freely, ask_skipping
from lib.studies.thinking_baselines import mixed_rows, sample_modes, shortest_pairs, train_dpo
from lib.tasks import Task, task_rows
from lib.thinking import CLOSE, thinking_tasks, with_reference

SAMPLES = 16  # K, of the reference
BEYOND = range(MAX_DEPTH + 1, MAX_DEPTH + 5)
Trained = tuple[Any, Any, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class DecisionOnly(AdaptThink):
    """A remedy: only the first token is trained, so that nothing is unlearnt of what follows it.

    Each response counts once, whatever its length. The ratio is that of the policy to itself.
    """

    name: ClassVar[str] = "adaptthink_decision_only"

    def loss(
        self, log_probs: torch.Tensor, old_log_probs: torch.Tensor, batch: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
        first = dict(batch) | {"completion_mask": batch["completion_mask"][:, :1]}
        return super().loss(log_probs[:, :1], old_log_probs[:, :1], first)


@dataclass(frozen=True)
class Recipe:
    """A method with something changed; `beyond` adds a fifth of questions too deep for the reference."""

    method: type[MethodConfig] = AdaptThink
    changes: Mapping[str, Any] = field(default_factory=dict)
    beyond: bool = False


FREE = {"force_start": False}
DECISION = {"variant": "unadjusted", **FREE}
RECIPES: dict[str, Recipe] = {
    "adaptthink": Recipe(),
    "free_start": Recipe(changes=FREE),
    "decision_only": Recipe(DecisionOnly, DECISION),
    "lower_rate": Recipe(changes={"learning_rate": 2e-4}),
    **{f"delta_{delta:g}": Recipe(changes={"delta": delta}) for delta in (0.0, 0.02, 0.1, 0.3)},
    "free_start_delta_0.3": Recipe(changes={"delta": 0.3} | FREE),
    "grpo": Recipe(NoThinkingBonus, {"batches": 20}),
    "grpo_length": Recipe(LengthReward, {"batches": 20}),
    "beyond_reach": Recipe(beyond=True),
}
RATES = (1e-4, 4e-4, 2e-3)
STARTS = {
    f"start/{variant}_{rate:.0e}": Recipe(changes={"variant": variant, "learning_rate": rate})
    for variant in VARIANTS
    for rate in RATES
}
MARGINS = {f"rft_{margin:g}": margin for margin in (0.0, 0.25, 0.5)}


def thinking_config(method: str, seed: int) -> MethodConfig:
    """The configuration of one of the runs that train by RL."""
    recipe = (RECIPES | STARTS)[method]
    return recipe.method.cpu(seed=seed, **recipe.changes)


# ---- questions -----------------------------------------------------------------------------------


def training_questions(seed: int, tokenizer: Any, *, beyond: bool = False) -> list[Task]:
    """A seed's 768 training questions; `beyond` gives 192 that are deeper instead."""
    choice: dict[str, Any] = {"seed": 50 + seed, "distinct": True}
    if beyond:
        tasks = dial_tasks(192, split="train", depths=BEYOND, **choice)
    else:
        tasks = dial_tasks(768, split="train", **choice)
    return thinking_tasks(tasks, tokenizer)


def reference_rows(seed: int, run: Run, *, beyond: bool = False) -> list[dict[str, Any]]:
    """A seed's training rows with the reference's accuracy, from the shipped counts or sampled anew."""
    policy = load_policy("dial-thinker")
    tasks = training_questions(seed, policy[1], beyond=beyond)
    path = PLACE / "reference" / f"{'beyond' if beyond else 'seed'}_{seed}.json"
    if not path.exists():
        found = sample_reference(policy, tasks, run.folder / path.with_suffix(".jsonl").name, say=print)
        right = {task.id: round(SAMPLES * found[task.id]["accuracy"]) for task in tasks}
        write_json(path, {"samples": SAMPLES, "temperature": 1.0, "max_new_tokens": 160, "right": right})
    stored = read_json(path)
    accuracy = {name: {"accuracy": count / stored["samples"]} for name, count in stored["right"].items()}
    return with_reference(task_rows(tasks), accuracy)


def training_rows(method: str, seed: int, run: Run) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows to train on, and others to watch: fewer where only the start is looked at."""
    rows = reference_rows(seed, run)
    if (RECIPES | STARTS)[method].beyond:
        rows += reference_rows(seed, run, beyond=True)
    watched = dial_tasks(60 if method in STARTS else 240, split="validation", seed=seed + 51)
    return rows, task_rows(thinking_tasks(watched, load_policy("dial-thinker")[1]))


# ---- runs ----------------------------------------------------------------------------------------


def rl(method: str, seed: int, run: Run) -> Trained:
    """What one of the recipes trains."""
    rows, watched = training_rows(method, seed, run)
    return fit(thinking_config(method, seed), rows, run, validation_rows=watched, say=print)


def from_samples(method: str, seed: int, run: Run) -> Trained:
    """SFT on samples of dial-thinker in both modes ("rft_" and its margin), or DPO on the shortest."""
    policy = load_policy("dial-thinker")
    tasks = training_questions(seed, policy[1])
    rollouts = sample_modes(policy, tasks, samples=4, seed=seed)
    if method in MARGINS:
        chosen = mixed_rows(rollouts, tasks, margin=MARGINS[method], seed=seed)
        config = replace(thinker.thinker_config(seed), base="dial-thinker", max_steps=80, learning_rate=3e-4)
        return train_sft(config, chosen[64:], chosen[:64], run, say=print)
    pairs = shortest_pairs(rollouts, tasks, seed=seed)
    model, tokenizer = train_dpo("dial-thinker", pairs, run, steps=40, seed=seed, say=print)
    return model, tokenizer, {"pairs": len(pairs), "questions": len(tasks), "steps": 40}


def make_thinker(method: str, seed: int, run: Run) -> Trained:
    """dial-thinker, from dial-base."""
    watched = thinker.thinker_rows(sample_questions(80, seed=seed, split="validation"))
    rows = thinker.thinker_rows(sample_questions(9600, seed=seed), seed=seed)
    return train_sft(thinker.thinker_config(seed), rows, watched, run, say=print)


def as_it_is(method: str, seed: int, run: Run) -> Trained:
    """dial-thinker, untrained."""
    return *load_policy("dial-thinker"), {"config": {"base": "dial-thinker"}}


OTHERS: dict[str, Callable[[str, int, Run], Trained]] = {
    "thinking": as_it_is,
    "nothinking": as_it_is,
    "thinker": make_thinker,
    "dpo_shortest": from_samples,
    **dict.fromkeys(MARGINS, from_samples),
}


def adaptthink(method: str, seed: int, run: Run) -> Outcome:
    """Notebook 05: a training, or dial-thinker as it is, and what the policy then answers."""
    policy = OTHERS.get(method, rl)(method, seed, run)
    if method in STARTS:
        return Outcome(watched_start(run.metrics()), policy[2], *policy[:2], log_rows=0)
    return measured(method, policy, seed, run)


def measured(method: str, policy: Trained, seed: int, run: Run) -> Outcome:
    """Free answers; "nothinking" is forced to skip. Of what RL trained, forced ones beside them."""
    model, tokenizer, facts = policy
    prefix, untrained = CLOSE if method == "nothinking" else "", OTHERS.get(method) is as_it_is
    named: dict[str, Any] = {"seed": seed, "prefix": prefix, "untrained": untrained, "run": run}
    numbers, answers = ask_freely((model, tokenizer), **named)
    tables = {"answers": answers}
    if not untrained:
        numbers["forced"], tables["forced"] = ask_skipping((model, tokenizer), seed=seed)
    log_rows = 40 if method in ("adaptthink", "free_start") else 16
    return Outcome(numbers, facts, model, tokenizer, tables, log_rows=log_rows)


def watched_start(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Mean log P(</think>), its share of free first tokens, and accuracy, by update."""
    names = {"log_p": "eval_log_p_nothinking", "skips": "eval_nothinking_ratio", "accuracy": "eval_accuracy"}
    evaluated = [row for row in rows if names["log_p"] in row]
    found = {name: [float(f"{row[key]:.5g}") for row in evaluated] for name, key in names.items()}
    return {"update": [row["step"] for row in evaluated]} | found
