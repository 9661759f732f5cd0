"""Tasks for lm-eval: questions, prompts and verdicts are those of this library, whoever samples.

lm_eval run --include_path data/lm_eval --tasks arm_gsm8k --model vllm --model_args pretrained=FOLDER
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from datasets import Dataset

from lib.formats import ReasoningFormat, parse_response
from lib.policies.load import load_tokenizer
from lib.sources import load_tasks
from lib.tasks import task_rows
from lib.thinking import CLOSE, is_solution_right, read_solution, thinking_tasks
from lib.verify import is_response_correct


def tasks(
    source: str,
    skip_thinking: bool = False,
    data_folder: str = "",
    pretrained: str = "",
    tokenizer: str = "",
    **_: Any,
) -> dict[str, Dataset]:
    """The test questions of a source, from the hub at its pinned revision or from `data_folder`.

    `pretrained` and `tokenizer` are the model's arguments, `data_folder` is for --metadata.
    """
    found = load_tasks([source], folder=data_folder)
    if skip_thinking:
        asked = thinking_tasks(found, load_tokenizer(tokenizer or pretrained))
        found = [replace(task, prompt=task.prompt + CLOSE) for task in asked]
    return {"test": Dataset.from_list(task_rows(found))}


def score_tagged(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Right by strict rules, valid, and whether it opens in each of the formats."""
    parsed = parse_response(results[0])
    shares = {str(format): float(parsed.format is format) for format in ReasoningFormat}
    right = is_response_correct(results[0], doc["answer"], doc["kind"])
    return {"accuracy": float(right), "valid": float(parsed.is_valid), **shares}


def score_solution(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Right by the last box or sentence; a response that opens or closes thoughts again has no solution."""
    response = CLOSE + results[0]
    right = is_solution_right(response, doc["answer"], doc["kind"])
    return {"accuracy": float(right), "thinks_again": float(read_solution(response) is None)}
