"""Every parameter of every notebook with values that it must refuse, and whether it does."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from typing import Any
from unittest.mock import patch

from lib.course.declared import Parameter, read_parameters, start
from lib.course.notebooks import CourseError, find_notebooks
from lib.course.runner import run_course
from lib.runs import runs_folder

PATHS = {path.stem: path for path in find_notebooks()}
DECLARED = {stem: read_parameters(path) for stem, path in PATHS.items()}
NO_JSON = [date(2020, 1, 1), {"b": {2}}, {3: 1}, [float("nan")], (1, 2), [{None: 1}]]
BAD_OPTIONS: list[dict[Any, Any]] = [
    *({"no_such": 3}, {"report_to": 5}, {"report_to": [1]}, {1: 2}, {1: 2, "optim": 3}),
    *({"logging_steps": date(2020, 1, 1)}, {"logging_steps": 0}, {"max_grad_norm": -1}, {"optim": "adamm"}),
    *({"loss_type": "nope"}, {"resume_from_checkpoint": "/no/such"}, {"num_iterations": 0}),
    *({"num_iterations": -1}, {"top_p": 5.0}, {"importance_sampling_level": "x"}, {"learning_rate": 1.0}),
    *({"lr_scheduler_kwargs": {"a": {1}}}, {"accelerator_config": {"x": 1}}, {"save_total_limit": 0}),
    *({"hub_strategy": "x"}, {"torch_empty_cache_steps": 0}, {"adam_beta1": 1.0}, {"warmup_steps": -5}),
    *({"max_grad_norm": float("nan")}, {"use_cpu": True}, {"fsdp": "full_shard"}, {"disable_tqdm": "no"}),
]
EACH = [(stem, parameter) for stem, parameters in DECLARED.items() for parameter in parameters]


@contextmanager
def read_once() -> Iterator[None]:
    """Notebooks with their outputs are long; what they declare does not change in between."""
    declared = {PATHS[stem]: parameters for stem, parameters in DECLARED.items()}
    with (
        patch("lib.course.profiles.read_parameters", declared.__getitem__),
        patch("lib.course.declared.read_parameters", declared.__getitem__),
    ):
        yield


def fault_of(stem: str, parameter: Parameter, value: Any) -> str:
    """What is wrong with how runner and set-up cell refuse a value: by name, at once, saying what may be."""
    begun, said, there = time.monotonic(), ["", ""], runs_folder().exists()
    values = {p.name: p.default for p in DECLARED[stem]} | {parameter.name: value}
    for place, refuse in enumerate(
        (lambda: run_course(only=[stem], overrides={parameter.name: value}), lambda: start(stem, values))
    ):
        try:
            refuse()
        except CourseError as error:
            said[place] = str(error)
        except Exception as error:
            said[place] = f"{type(error).__name__}: {error}"
    lines = [line for line in said[0].splitlines() if f": {parameter.name}" in line]
    if not lines or not (parameter.type == "dict" or any(" takes " in x and "got" in x for x in lines)):
        return f"the runner says {said[0]!r:.200}"
    if f"{stem}: {parameter.name}" not in said[1]:
        return f"the set-up cell says {said[1]!r:.200}"
    if runs_folder().exists() != there:
        return "a folder was made"
    return "it took long" if time.monotonic() - begun > 10 else ""


def bad_values(parameter: Parameter) -> list[Any]:
    """Values that the parameter's type and rule exclude, by kind of parameter."""
    of_type = {
        "bool": [1, "yes", None],
        "int": [1.5, "3", True, None, -4, float("nan")],
        "float": ["1e-5", True, None, float("nan"), float("inf"), -1, 1000],
        "str": [3, None, ["a"]],
        "dict": [3, "a", None, {1: 2}, {1: 2, "a": 3}, *({"a": value} for value in NO_JSON)],
        "list[str]": ["dial", [], [3], ["gsm8kk"], None],
        "list[int]": [4, [], [-1], [0], [True], ["a"], None],
        "list[float]": [0.5, [], [-1.0], [float("nan")], [True], ["a"], None],
    }[parameter.type]
    kinds = {part.strip() for part in parameter.rule.split("|")}
    words = {
        "folder": ["/no/such"],
        "file": ["/no/such.jsonl"],
        "url": ["localhost:8000", "htp://host"],
        "source": ["gsm8kk"],
        "model": ["dial-bse", "/no/such/model", "data/samples", "gpt 2"],
        "real model": ["dial-sft", "dial-bse", "/no/such/model", "gpt 2"],
        "name": ["a/b", ".."],
        "variable": ["sk-secret", "a key", "lower"],
        "text": [],
    }
    texts = [word for kind in kinds if kind in words for word in words[kind]]
    if parameter.type == "str" and not kinds & set(words):  # a choice: misspelt, in capitals
        word = parameter.default or min(kinds - {"empty"})
        texts = [word.upper() + "x", f"{word} ", word.capitalize()]
    return of_type + texts + ([] if "empty" in kinds or parameter.type != "str" else [""])
