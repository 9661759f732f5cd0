"""Sweeps: one notebook with every combination of some parameters' values, and one table at the end.

python -m lib.studies.sweep notebooks/sweeps/rates.yaml             all cases, several at a time
python -m lib.studies.sweep notebooks/sweeps/rates.yaml --array 3   one case, or the Slurm task's
python -m lib.studies.sweep notebooks/sweeps/rates.yaml --table     run nothing, collect what is finished

    notebook: "03"          # name or number
    profile: smoke
    set: {TEST_QUESTIONS: 60}                            # for all cases
    grid: {LEARNING_RATE: [1.0e-4, 4.0e-4], SEED: [0, 1]}
    cases: [{LEARNING_RATE: 0.01}]                       # and these
    jobs: 2                 # at a time, on this machine
    show: [ada_grpo.accuracy]                            # of metrics.json; the file of the table has all

A run keeps its place, `runs/<profile>/<notebook>/<file>+<its values>`, so what was finished is found again.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import yaml

from lib.checked import Range, close, faults, raise_faults
from lib.course.notebooks import NOTEBOOKS, CourseError, choose, find_notebooks
from lib.course.profiles import DEFAULT_PROFILE, Plan, plan, read_values
from lib.course.runner import run_plans
from lib.runs import RunFolderError, digest, read_json, write_atomically

SHOWN = 6  # columns of the printed table, where the file does not choose
KEYS: dict[str, Any] = {
    "notebook": str,
    "profile": str,
    "set": dict,
    "grid": dict[str, list],
    "cases": list[dict],
    "jobs": Annotated[int, Range(1)],
    "show": list[str],
}


@dataclass(frozen=True)
class Case:
    """One run: its values, the place in the file that they come from, and its plan."""

    values: dict[str, Any]
    plan: Plan


@dataclass(frozen=True)
class Sweep:
    """A file that was read and checked."""

    name: str
    cases: list[Case]
    jobs: int
    show: list[str]

    @property
    def table_file(self) -> Path:
        """Beside the runs."""
        return self.cases[0].plan.folder.with_name(f"{self.name}.csv")


# ---- read and check ----------------------------------------------------------------------------


def read_sweep(file: Path, folder: Path = NOTEBOOKS) -> Sweep:
    """A sweep with all its plans; CourseError names file, line and key of everything that is wrong."""
    if not file.is_file():
        raise CourseError(f"There is no file {file}.")
    given, lines = read_values(file), _lines(file)
    raise_faults(_key_faults(file, given, lines), CourseError)
    (path,) = choose(find_notebooks(folder), [given["notebook"]], None)
    empty, common = plan(path, given.get("profile", DEFAULT_PROFILE), {}), given.get("set", {})
    cases = []
    for values, origin in _combinations(given):
        planned = copy.deepcopy(empty)
        for name, value in [*common.items(), *values.items()]:
            line = lines.get((*origin.get(name, ("set",)), name), lines[("notebook",)])
            planned.give({name: value}, f"{file}, line {line}")
        planned.give({"RUN_NAME": run_name(file.stem, values)}, f"{file}")
        cases.append(Case(values, planned))
    raise_faults(_case_faults(file, cases, [*common]), CourseError)
    return Sweep(file.stem, cases, given.get("jobs", 1), given.get("show", []))


def run_name(sweep: str, values: Mapping[str, Any]) -> str:
    """A readable name that depends on these values alone; what no folder can be called gets a hash."""
    plain = "+".join([sweep, *(f"{name}={value}" for name, value in values.items())])
    text = re.sub(r"[^\w.=+-]+", ".", plain)
    return text if text == plain and len(text) <= 120 else f"{text[:100]}-{digest(values)}"


def _combinations(given: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, tuple[Any, ...]]]]:
    """The values of each case, and under which keys of the file each of them stands."""
    grid = given.get("grid", {})
    if grid:
        for values in itertools.product(*grid.values()):
            yield dict(zip(grid, values, strict=True)), dict.fromkeys(grid, ("grid",))
    for number, values in enumerate(given.get("cases", [])):
        yield values, dict.fromkeys(values, ("cases", number))


def _lines(file: Path) -> dict[tuple[Any, ...], int]:
    """The line of every key: ("grid", "SEED") -> 5, ("cases", 0, "SEED") -> 7."""
    found: dict[tuple[Any, ...], int] = {}

    def walk(node: yaml.Node, place: tuple[Any, ...]) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                found[(*place, key.value)] = key.start_mark.line + 1
                walk(value, (*place, key.value))
        elif isinstance(node, yaml.SequenceNode):
            for number, value in enumerate(node.value):
                walk(value, (*place, number))

    walk(yaml.compose(file.read_text(encoding="utf-8")) or yaml.MappingNode("", []), ())
    return found


def _key_faults(file: Path, given: Mapping[str, Any], lines: Mapping[tuple[Any, ...], int]) -> Iterator[str]:
    """What is wrong with the file itself."""
    for name, value in given.items():
        where = f"{file}, line {lines[(name,)]}"
        if name not in KEYS:
            yield f"{where}: {name} is not known here{close(name, KEYS)}. There are {', '.join(KEYS)}."
        else:
            yield from faults(f"{where}: {name}", KEYS[name], value)
    if "notebook" not in given:
        yield f"{file}: notebook is missing: which one to run, by name or number."
    if not given.get("grid") and not given.get("cases"):
        yield f"{file}: nothing to run: give a grid, or cases, or both."
    grid = given.get("grid")
    for name in [name for name, values in grid.items() if values == []] if isinstance(grid, dict) else []:
        yield f"{file}, line {lines[('grid', name)]}: {name} has no values."


def _case_faults(file: Path, cases: Sequence[Case], common: Sequence[str]) -> Iterator[str]:
    """What is wrong with the values, each fault once however many cases share it."""
    folders: dict[Path, Case] = {}
    said: dict[str, None] = {}
    for case in cases:
        if case.plan.left_out:
            said[f"{file}: {case.plan.path.stem} is {case.plan.left_out}."] = None
        for name in case.values:
            if name in common or name == "RUN_NAME":
                why = "stands under set as well" if name in common else "is made from the values"
                said[f"{file}: {name} {why}; take it out of grid and cases."] = None
        for fault in case.plan.check(made=()):
            said[fault] = None
        if not said and folders.setdefault(case.plan.folder, case) is not case:
            said[f"{file}: two cases have the same values, {case.values}."] = None
    yield from said


# ---- the table ---------------------------------------------------------------------------------


def collect(sweep: Sweep) -> pd.DataFrame:
    """One row a case: run, values, whether it is finished, its minutes, and every number of metrics.json."""
    rows = []
    for case in sweep.cases:
        folder = case.plan.folder
        row = {"run": folder.name, **case.values, "status": "not finished"}
        if (folder / "finished.json").exists():
            record = read_json(folder / "finished.json")
            if record["parameters"] == case.plan.given:
                row |= {"status": "finished", "minutes": round(record["seconds"] / 60, 2)}
                row |= pd.json_normalize(read_json(folder / "metrics.json")).iloc[0].to_dict()
        rows.append(row)
    return pd.DataFrame(rows)


def shown(sweep: Sweep, table: pd.DataFrame) -> str:
    """The table as text: values against the chosen numbers, or the first few."""
    values = list(dict.fromkeys(name for case in sweep.cases for name in case.values))
    numbers = [name for name in table.select_dtypes("number") if name not in (*values, "minutes")]
    unknown = [name for name in sweep.show if name not in numbers]
    columns = [name for name in sweep.show if name in numbers] if sweep.show else numbers[:SHOWN]
    text = table[[*values, "status", *columns]].to_string(index=False, float_format=lambda x: f"{x:.4g}")
    missing = f"\nno numbers called {', '.join(unknown)}; the file has all that there are" if unknown else ""
    return text + missing


def write_table(sweep: Sweep) -> str:
    """Write the table beside the runs; what to print."""
    table = collect(sweep)
    write_atomically(sweep.table_file, table.to_csv(index=False))
    return f"{shown(sweep, table)}\n\nall numbers: {sweep.table_file}"


# ---- the command -------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks for; 1 where a run failed."""
    given = _parser().parse_args(arguments)
    try:
        sweep = read_sweep(given.file)
        if given.table:
            print(write_table(sweep))
            return 0
        return _run(sweep, None if given.array is None else _index(given.array, sweep), again=given.again)
    except (CourseError, RunFolderError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on with what is not finished", file=sys.stderr)
        return 130


def _run(sweep: Sweep, index: int | None, *, again: bool) -> int:
    cases = sweep.cases if index is None else [sweep.cases[index]]
    print(f"{sweep.name}: {len(cases)} of {len(sweep.cases)} cases, {sweep.jobs} at a time", flush=True)
    outcomes = run_plans(
        [case.plan for case in cases],
        again=again,
        jobs=sweep.jobs,
        keep_going=True,
        say=partial(print, flush=True),
    )
    if index is None:
        print(f"\n{write_table(sweep)}")
    failed = [outcome for outcome in outcomes if outcome.failed]
    for outcome in failed:
        print(f"{outcome.status}: {outcome.notebook}", file=sys.stderr)
    return 1 if failed else 0


def _index(text: str, sweep: Sweep) -> int:
    number = text or os.environ.get("SLURM_ARRAY_TASK_ID", "")
    if not number.isdecimal() or int(number) >= len(sweep.cases):
        known = f"a number from 0 to {len(sweep.cases) - 1}"
        raise CourseError(f"--array takes {known}, or SLURM_ARRAY_TASK_ID is one; got {number or 'neither'}.")
    return int(number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lib.studies.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, help="the sweep as YAML")
    words = "run one case, counted from 0; without a number the task of a Slurm array"
    parser.add_argument("--array", nargs="?", const="", metavar="INDEX", help=words)
    parser.add_argument("--table", action="store_true", help="collect what is finished, run nothing")
    parser.add_argument("--again", action="store_true", help="repeat what was finished before")
    return parser


if __name__ == "__main__":
    sys.exit(main())
