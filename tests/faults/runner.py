"""The course runner is ended at a seeded moment: nothing outlives it, and its rerun ends alike."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

from lib.course.runner import run_course
from lib.runs import Run

from .campaign import Found
from .processes import family, left

HOW = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
WHO = ("the runner", "papermill", "the kernel")
PARAMETERS = 'PROFILE: str = "cpu"  # of the course\nPLACE: str = "{}"  # [folder] of the tests'
CELL = """\
import pathlib, sys, time

sys.path.insert(0, PLACE)
import torch
from faults.small_bandit import bandit
from lib.runs import start_run

run = start_run("00_a", PROFILE, {})
run.finish({"reward": bandit(run.folder, "", {}, wait=0.15)[-1]["reward"]})"""
COMMAND = """
import pathlib, sys
from lib.course.runner import run_course
run_course(folder=pathlib.Path(sys.argv[1]))
"""


def case(rng: random.Random, folder: Path, number: int) -> Found:
    """A notebook that trains a bandit; its runner, papermill or kernel is ended, once or twice."""
    straight, notebooks = folder.parent / "straight", _notebooks(folder.parent / "notebooks")
    if not (straight / "cpu" / "00_a" / "finished.json").exists():
        _run(notebooks, straight).wait(300)
    broken, said = [], []
    for _ in range(1 + number % 2):
        said.append(_end_one(rng, notebooks, folder / "runs", broken))
    if (code := _run(notebooks, folder / "runs").wait(300)) != 0:
        broken.append(f"the rerun ends by {code}")
    if _left_by(folder / "runs") != _left_by(straight):
        broken.append("other metrics after the rerun")
    return Found("; ".join(said), 1, broken)


def _end_one(rng: random.Random, notebooks: Path, runs: Path, broken: list[str]) -> str:
    """Start the course, end one of its processes, and see who is left."""
    runner, wait = _run(notebooks, runs), rng.uniform(0, 10)
    begun = time.monotonic()
    while len(pids := family(runner.pid)) < 3 and runner.poll() is None and time.monotonic() < begun + 60:
        time.sleep(0.1)
    with patch.dict(os.environ, {"RUNS_DIR": str(runs)}):
        second = (
            run_course(folder=notebooks, say=lambda line: None)[0].status
            if runner.poll() is None
            else "runs elsewhere"
        )
    if second != "runs elsewhere":
        broken.append(f"a second runner on the same folder: {second}")
    with_wait = time.monotonic() + wait
    while runner.poll() is None and time.monotonic() < with_wait:
        time.sleep(0.1)
    pids = family(runner.pid) if runner.poll() is None else pids
    who, how = min(rng.choice((0, 0, 1, 2)), len(pids) - 1), rng.choice(HOW)
    name = WHO[min(who, 2)]
    try:
        os.kill(pids[who], how)
    except ProcessLookupError:
        name += " (it had ended)"
    runner.wait(120)
    if there := left(pids, 60):
        broken.append(f"{len(there)} processes outlive {how.name} to {name} after {wait:.1f} s")
    for pid in there:
        os.kill(pid, signal.SIGKILL)
    return f"{how.name} to {name} after {wait:.1f} s"


def _run(notebooks: Path, runs: Path) -> subprocess.Popen[bytes]:
    """A process of the course's runner on these notebooks."""
    runs.mkdir(parents=True, exist_ok=True)
    surroundings = os.environ | {"RUNS_DIR": str(runs), "OMP_NUM_THREADS": "1"}
    with (runs / "log.txt").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND, str(notebooks)],
            env=surroundings,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _notebooks(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    place = Path(__file__).parent.parent
    cells = [new_code_cell(PARAMETERS.format(place), metadata={"tags": ["parameters"]}), new_code_cell(CELL)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), folder / "00_a.ipynb")
    return folder


def _left_by(runs: Path) -> dict[str, Any]:
    folder = runs / "cpu" / "00_a"
    finished = folder / "metrics.json"
    rows = Run(folder, {}).metrics() if folder.exists() else []
    return {"metrics": json.loads(finished.read_text()) if finished.exists() else None, "log": rows}
