"""Small trainings by the real trainers, a second or two each, for whoever stops and resumes them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from lib.dial import dial_tasks, dial_tokenizer, new_dial_model, sample_questions
from lib.dial.pretrain import PretrainConfig, pretrain
from lib.dial.responses import gold_response
from lib.engines.server import ChatServer
from lib.formats import ReasoningFormat
from lib.methods import from_json
from lib.methods.ada_grpo import AdaGRPO
from lib.methods.adaptthink import AdaptThink
from lib.methods.fit import fit
from lib.methods.sft import SFTConfig, train_sft
from lib.methods.sft_rows import read_rows
from lib.policies.load import load_policy
from lib.policies.save import save_policy
from lib.runs import Run
from lib.studies.reference_samples import sample_reference
from lib.tasks import task_rows
from lib.thinking import thinking_tasks

from .small_bandit import bandit

STEPS = 6
SAVED = ("SFT", "Ada-GRPO", "AdaptThink", "pre-training")  # by transformers' trainer, with checkpoints
UNTIMELY = (
    "seconds",
    "step_time",
    "tokens_per_second",
    "memory_mb",
    "runtime",
    "samples_per_second",
    "steps_per_second",
)
Changes = dict[str, Any]


def base(folder: Path, seed: int = 0) -> str:
    """A random dial model on disk; the same seed finds it again."""
    place = folder / f"base_{seed}"
    if not (place / "provenance.json").exists():
        save_policy(new_dial_model(seed=seed, layers=1, width=32), dial_tokenizer(), place)
    return str(place)


def first_is_even(completion_ids: Sequence[Sequence[int]], **others: Any) -> list[float]:
    """A random model answers nothing rightly: reward what can differ."""
    return [float(ids[0] % 2 == 0) for ids in completion_ids]


# ---- each: trains in a folder, or goes on there -------------------------------------------------------


def sft(folder: Path, model: str, changes: Changes) -> None:
    small = {
        "weights": "lora",
        "max_steps": STEPS,
        "batch_size": 4,
        "micro_batch_size": 2,
        "log_every": 1,
        "save_every": 2,
    }
    questions = sample_questions(20, seed=0)
    rows = [{"prompt": q.prompt, "completion": gold_response(q, ReasoningFormat.DIRECT)} for q in questions]
    train_sft(SFTConfig.cpu(model, **small | changes), rows[4:], rows[:4], Run(folder, {}), say=print)


RL = {"batches": STEPS, "prompts": 2, "micro_batch_size": 8, "max_completion_length": 8, "save_every": 2}


def ada_grpo(folder: Path, model: str, changes: Changes) -> None:
    rows = task_rows(dial_tasks(6, split="train", seed=0, depths=[1, 2]))
    config = AdaGRPO.cpu(model, **RL | {"num_generations": 4} | changes)
    fit(config, rows, Run(folder, {}), reward=first_is_even, say=print)


def by_two(call: dict[str, Any]) -> dict[str, Any]:
    """Ada-GRPO as `lib.engines.launch` calls it in each process; `call` as in `lib.methods.fit.train`."""
    run = Run(Path(call["folder"]), {})
    return fit(from_json(call["config"]), read_rows(call["rows"], ()), run, reward=first_is_even, say=print)[
        2
    ]


def adaptthink(folder: Path, model: str, changes: Changes) -> None:
    rows = [row | {"reference_accuracy": 0.5} for row in task_rows(_thinking(8))]
    config = AdaptThink.cpu(model, **RL | {"max_nothinking_length": 6, "eval_every": 2} | changes)
    run = Run(folder, {})
    fit(config, rows[2:], run, validation_rows=rows[:2], reward=first_is_even, say=print)


def pretraining(folder: Path, model: str, changes: Changes) -> None:
    """A row a step, as with the others: a row over several steps holds those since the resume alone."""
    small = {"steps": STEPS, "documents_per_step": 4, "warmup_steps": 2, "growing_steps": 4, "save_every": 2}
    with patch("lib.dial.pretrain.TrainingArguments", _logging_each_step):
        pretrain(PretrainConfig(**small | changes), dial_tokenizer(), Run(folder, {}), say=print)


def _logging_each_step(**given: Any) -> TrainingArguments:
    return TrainingArguments(**given | {"logging_steps": 1})


def reference(folder: Path, model: str, changes: Changes) -> None:
    sampling = {"samples": 4, "max_new_tokens": 12, "questions_at_once": 4} | changes
    sample_reference(load_policy(model), _thinking(24), folder / "reference.jsonl", **sampling)


def server_cache(folder: Path, model: str, changes: Changes) -> None:
    """`model` is the address of a chat server here."""
    os.environ["no_proxy"] = "127.0.0.1"
    requests = [{"messages": [{"role": "user", "content": f"{n} + 1?"}], "max_tokens": 9} for n in range(40)]
    replies = ChatServer(model, "m", folder / "replies", workers=4).ask(requests, show=lambda line: None)
    (folder / "said.json").write_text(json.dumps([reply.text for reply in replies]))


def _thinking(count: int) -> list[Any]:
    return thinking_tasks(dial_tasks(count, split="train", seed=1, depths=[1, 2]), dial_tokenizer())


TRAININGS: dict[str, Callable[[Path, str, Changes], Any]] = {
    "SFT": sft,
    "Ada-GRPO": ada_grpo,
    "AdaptThink": adaptthink,
    "pre-training": pretraining,
    "bandit": bandit,
    "reference samples": reference,
    "server cache": server_cache,
}


# ---- what they leave, held against one another -------------------------------------------------------


def left_by(folder: Path) -> dict[str, Any]:
    """What a run must leave alike however often it was stopped: weights, log, decisions, samples, replies."""
    weights = sorted(
        [*folder.glob("checkpoint/result/*.safetensors"), *folder.glob("checkpoint/policy.safetensors")]
    )
    kept: dict[str, Any] = {path.name: load_file(path) for path in weights}
    kept["metrics"] = [_timeless(row) for row in Run(folder, {}).metrics()]
    for path in (
        *folder.glob("*.json"),
        *folder.glob("reference.jsonl"),
        *folder.glob("checkpoint/decisions.jsonl"),
    ):
        kept[path.name] = path.read_text()
    kept["replies"] = sorted(path.name for path in folder.glob("replies/*.json"))
    return kept


def _timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not name.endswith(UNTIMELY)}


def differences(one: dict[str, Any], other: dict[str, Any]) -> str:
    """Which of two runs' leavings differ, bit by bit; nothing where all are alike."""
    names = sorted(one.keys() | other.keys())
    return ", ".join(name for name in names if not _alike(one.get(name), other.get(name)))


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    return json.dumps(one) == json.dumps(other)
