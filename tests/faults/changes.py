"""Another configuration on a folder that was used: never the old run's result, and never without a word."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

from lib.course.runner import run_course

from .campaign import Found
from .children import appears, ended, start
from .kills import last_words
from .trainings import base, differences, left_by

CHANGED: dict[str, list[dict[str, Any]]] = {
    "SFT": [{"learning_rate": 1e-3}, {"seed": 7}, {"weights": "full"}, {"batch_size": 2}],
    "Ada-GRPO": [{"learning_rate": 1e-3}, {"seed": 7}, {"temperature": 0.6}, {"prompts": 4}],
    "AdaptThink": [{"learning_rate": 1e-3}, {"seed": 7}, {"delta": 0.5}, {"variant": "token"}],
    "pre-training": [{"learning_rate": 1e-2}, {"seed": 7}, {"documents_per_step": 6}],
    "bandit": [
        {"learning_rate": 0.1},
        {"seed": 7},
        {"baseline": "mean"},
        {"entropy_bonus": 0.5},
        {"rewarded": 1},
    ],
    "reference samples": [{"temperature": 0.6}, {"seed": 7}, {"samples": 2}],
}
MODELS = ("another model", "another model in its place")
STARTED = ("SFT", "Ada-GRPO", "AdaptThink", "reference samples")  # from a model on disk
KINDS = [(name, change) for name, changes in CHANGED.items() for change in changes]
KINDS += [(name, {"model": how}) for name in STARTED for how in MODELS]
COURSE = ("a parameter", "a file that a parameter names", "a folder that a parameter names", "the code")
MOST = 2 * len(KINDS) + len(COURSE)  # unfinished and finished, each


def case(rng: random.Random, folder: Path, number: int) -> Found:
    """The next change, on an unfinished training, on a finished one, or on a notebook that was executed."""
    if number >= 2 * len(KINDS):
        return _course(folder, COURSE[number - 2 * len(KINDS)])
    (training, change), finished = KINDS[number // 2], number % 2 == 1
    model, used, fresh = folder / "model", folder / "used", folder / "fresh"
    shutil.copytree(base(folder.parent), model)
    used.mkdir()
    fresh.mkdir()
    process = start(training, used, str(model))
    if not finished and appears("checkpoint/checkpoint-2/trainer_state.json", used, process):
        process.kill()
    ended(process)
    changes, then = _changed(change, model, folder)
    code = ended(start(training, used, then, changes))
    if code == 1 and "was made with" in (used / "log.txt").read_text():
        return Found(f"{training}, {change}: refused by name")
    ended(start(training, fresh, then, changes))
    broken = [f"it ends by {code}: {last_words(used)}"] if code else []
    if not broken and (differing := differences(left_by(fresh), left_by(used))):
        broken.append(f"not what these settings give afresh: {differing}")
    return Found(f"{training}, {'finished' if finished else 'killed'}, then {change}", 1, broken)


def _changed(change: dict[str, Any], model: Path, folder: Path) -> tuple[dict[str, Any], str]:
    """The settings and the model that come next."""
    if "model" not in change:
        return change, str(model)
    other = base(folder.parent, seed=1)
    if change["model"] == "another model":
        return {}, other
    shutil.rmtree(model)
    shutil.copytree(other, model)
    return {}, str(model)


# ---- notebooks ---------------------------------------------------------------------------------------


PARAMETERS = """\
PROFILE: str = "cpu"  # of the course
SEED: int = 1  # [0..] of all
MODEL: str = "{}"  # [model] a folder
ROWS: str = "{}"  # [file] rows
"""
CODE = "print(PROFILE, SEED, MODEL, open(ROWS).read())"


def _course(folder: Path, change: str) -> Found:
    """A finished notebook is repeated after a change, and only then."""

    model, rows, notebooks = folder / "model", folder / "rows.jsonl", folder / "notebooks"
    model.mkdir()
    (model / "weights").write_text("old")
    (model / "config.json").write_text("{}")
    rows.write_text('{"a": 1}\n')
    _write(notebooks, PARAMETERS.format(model, rows), CODE)
    with patch.dict("os.environ", {"RUNS_DIR": str(folder / "runs")}):
        said = [_status(notebooks), _status(notebooks)]
        if change == "a parameter":
            said.append(_status(notebooks, SEED=2))
        elif change == "the code":
            _write(notebooks, PARAMETERS.format(model, rows), CODE + "\nprint()")
        elif change == "a file that a parameter names":
            rows.write_text('{"a": 2}\n')
        else:
            (model / "weights").write_text("new")
        said += [_status(notebooks)] if change != "a parameter" else []
    broken = [] if said == ["ok", "finished before", "ok"] else [f"first, again, changed: {said}"]
    return Found(f"a notebook, then {change} changed", 1, broken)


def _write(folder: Path, parameters: str, code: str) -> None:
    folder.mkdir(exist_ok=True)
    cells = [new_code_cell(parameters, metadata={"tags": ["parameters"]}), new_code_cell(code)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), folder / "00_a.ipynb")


def _status(folder: Path, **overrides: Any) -> str:
    return run_course(folder=folder, overrides=overrides, say=lambda line: None)[0].status
