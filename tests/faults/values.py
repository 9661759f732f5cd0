"""Values that no parameter may have, and command lines that nobody meant: refused by name, at once."""

import contextlib
import io
import os
import random
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

from lib.course.__main__ import main
from lib.runs import ROOT

from .campaign import Found
from .parameters import DECLARED, PATHS, bad_values, fault_of, read_once

# What no parameter of a type may be, beside what the tests know.
NONSENSE = {
    "bool": ["true", 0, 2, [True], {}, 1.0],
    "int": [[1], {}, "1", "", 1e3, 10**400, -(10**9), "\ud800"],
    "float": [[0.1], {}, "", "0.1", -1e308, "\u00b2", float("-inf")],
    "str": [True, 1.5, {}, ["a"], [[]]],
    "dict": [[], [("a", 1)], 0, True, ""],
    "list[str]": ["a", {}, [[]], [None], [1.5], 0],
    "list[int]": [1, {}, [[1]], ["1"], [1.5], ""],
    "list[float]": [{}, [[0.5]], ["0.5"], [float("inf")], ""],
}
LINES = {
    "--set X=[1": "--set",
    "--set =1": "--set",
    "--set SEED": "NAME=VALUE",
    "--set SEED=": "SEED",
    "--set SEED={1: 2}": "SEED",
    "--profile ..": "profile",
    "--profile smoke/../cpu": "profile",
    "--only 99": "99",
    "--from zz": "zz",
    "--jobs 0": "--jobs",
    "--set SEDE=1": "SEDE",
    "--solutions --set SEED=1": "--solutions",
}
MOST = len(DECLARED) + 1


def case(rng: random.Random, folder: Path, number: int) -> Found:
    """All bad values of one notebook, with some nonsense for each parameter; last the command lines."""
    if number >= len(DECLARED):
        return _command_lines(folder)
    stem = sorted(DECLARED)[number]
    tried = [
        (parameter, value)
        for parameter in DECLARED[stem]
        if parameter.name != "PROFILE"
        for value in [*bad_values(parameter), *rng.sample(NONSENSE[parameter.type], 3)]
    ]
    runs = {"RUNS_DIR": str(folder / "runs")}
    with read_once(), patch.dict("os.environ", runs), patch("lib.course.runner.papermill", _begun):
        found = [(parameter.name, value, fault_of(stem, parameter, value)) for parameter, value in tried]
        found += [(f"{p.name}S", 1, _misspelt(PATHS[stem].stem, f"{p.name}S")) for p in DECLARED[stem]]
    broken = [f"{name}={value!r:.40}: {fault}" for name, value, fault in found if fault]
    return Found(f"{stem}: {len(found)} values", len(found), broken)


def _begun(*given: object) -> None:
    raise AssertionError("a notebook was begun")


def _misspelt(stem: str, name: str) -> str:
    code, said = _said(["--only", stem, "--set", f"{name}=1"])
    return "" if code == 1 and name in said else f"exit code {code}: {said:.200}"


def _said(words: list[str]) -> tuple[object, str]:
    """Exit code and words of the course's command line; a traceback is the class of its error."""
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        try:
            return main(words), error.getvalue()
        except SystemExit as ended:  # argparse
            return ended.code, error.getvalue()
        except Exception as raised:
            return type(raised).__name__, str(raised)


def _command_lines(folder: Path) -> Found:
    """As a reader types them: named, with exit code 1 or argparse's 2, and no traceback."""
    broken, surroundings = [], os.environ | {"RUNS_DIR": str(folder / "runs")}
    for line, name in LINES.items():
        command = [sys.executable, "-m", "lib.course", *_words(line)]
        done = subprocess.run(command, env=surroundings, cwd=ROOT, capture_output=True, text=True, timeout=60)
        if done.returncode not in (1, 2) or name not in done.stderr or "Traceback" in done.stderr:
            broken.append(f"{line}: exit code {done.returncode}: {done.stderr[-200:]}")
    return Found(f"{len(LINES)} command lines", len(LINES), broken)


def _words(line: str) -> list[str]:
    """The option, and all that follows it as one word."""
    flags, _, value = line.rpartition(" ") if "{" not in line else ("--set", "", "SEED={1: 2}")
    return [*flags.split(), value]
