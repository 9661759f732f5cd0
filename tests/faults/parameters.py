"""Every parameter of every notebook with values that it must refuse, and whether it does."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from lib.course.declared import Parameter, read_parameters, start
from lib.course.notebooks import CourseError, find_notebooks
from lib.course.runner import run_course
from lib.runs import runs_folder

PATHS = {path.stem: path for path in find_notebooks()}
DECLARED = {stem: read_parameters(path) for stem, path in PATHS.items()}
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
    if not any(" takes " in line and "got" in line for line in lines):
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
        "dict": [3, "a", None],
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
