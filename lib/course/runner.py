"""Execute the notebooks in order with papermill, check their parameters, and stamp their outputs.

python -m lib.course --list
python -m lib.course --profile smoke --only 00 --set SEED=1
"""

from __future__ import annotations

import argparse
import ast
import base64
import copy
import difflib
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import yaml

from lib.runs import ROOT, RunFolderError, provenance, read_json, runs_folder, write_atomically, write_json

NOTEBOOKS = ROOT / "notebooks"
DEFAULT_PROFILE = "cpu"  # the values written in the notebooks themselves
MEASURED = re.compile(r"(?<=\*\*Measured\*\*: ).*")


class CourseError(Exception):
    """Something the user can put right; the message says what and where."""


@dataclass(frozen=True)
class Parameter:
    name: str
    type: str
    default: Any
    help: str


@dataclass
class Outcome:
    notebook: str
    status: str
    seconds: float = 0.0
    peak_memory_mb: float = 0.0


# ---- notebooks and their parameters ------------------------------------------------------------


def find_notebooks(folder: Path = NOTEBOOKS) -> list[Path]:
    """The notebooks of the course in reading order: 00_..., 01_..., and so on."""
    return sorted(folder.glob("[0-9][0-9]_*.ipynb"))


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def code_hash(notebook: nbformat.NotebookNode) -> str:
    """SHA-256 of the code cells, in order; what a stamp vouches for."""
    sources = [cell.source for cell in code_cells(notebook)]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def read_parameters(path: Path) -> list[Parameter]:
    """The parameters a notebook declares: plain `NAME: type = literal  # meaning` in the tagged cell."""
    notebook = nbformat.read(path, as_version=4)
    tagged = [cell for cell in code_cells(notebook) if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise CourseError(f"{path.name}: expected one cell tagged 'parameters', found {len(tagged)}.")
    lines = tagged[0].source.splitlines()
    parameters = []
    for node in ast.parse(tagged[0].source).body:
        where = f"{path.name}, parameters cell, line {node.lineno}"
        if not (
            isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None
        ):
            raise CourseError(f"{where}: write `NAME: type = literal  # meaning`, nothing else.")
        try:
            default = ast.literal_eval(node.value)
        except ValueError:
            raise CourseError(
                f"{where}: {node.target.id} must be a literal; derive values in a later cell."
            ) from None
        help = lines[node.end_lineno - 1].partition("#")[2].strip()
        parameters.append(Parameter(node.target.id, ast.unparse(node.annotation), default, help))
    _check_used(path, notebook, tagged[0], [parameter.name for parameter in parameters])
    return parameters


def _check_used(
    path: Path, notebook: nbformat.NotebookNode, tagged: nbformat.NotebookNode, names: Sequence[str]
) -> None:
    """A parameter that no later cell reads, or that one overwrites, would be ignored in silence: an error."""
    read: set[str] = set()
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type != "code" or cell is tagged:
            continue
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Name) and node.id in names:
                if not isinstance(node.ctx, ast.Load):
                    raise CourseError(
                        f"{path.name}, cell {number}: the parameter {node.id} is overwritten, so a value set "
                        "from outside would be lost. Use another name for the derived value."
                    )
                read.add(node.id)
    if unused := [name for name in names if name not in read]:
        raise CourseError(
            f"{path.name}: no cell uses the parameter {', '.join(unused)}. Use it or remove it."
        )


def resolve_parameters(
    path: Path, profile: str, overrides: Mapping[str, Any], *, dry_run: bool = False
) -> dict[str, Any] | None:
    """The values a profile and `--set` give to a notebook; None where the profile leaves it out.

    A dry run lays the file of the folder `dry_run` over the profile: small sizes, and a random model and
    local rows in place of downloads.
    """
    declared = {parameter.name: parameter for parameter in read_parameters(path)}
    given: dict[str, Any] = {}
    layers = [profile] if profile != DEFAULT_PROFILE else []
    for layer in [*layers, "dry_run"] if dry_run else layers:
        folder = path.parent / "profiles" / layer
        if not folder.is_dir():
            known = [
                DEFAULT_PROFILE,
                *sorted(p.name for p in (path.parent / "profiles").glob("*") if p.is_dir()),
            ]
            raise CourseError(
                f"There is no profile {layer!r}{_hint(layer, known)} There are {', '.join(known)}."
            )
        file = folder / f"{path.stem}.yaml"
        if not file.exists():
            return None
        values = _read_profile(file)
        for name, value in values.items():
            _check_value(declared, name, value, f"{path.name}, profile file {layer}/{file.name}")
        given |= values
    for name, value in overrides.items():
        if name in declared:
            _check_value(declared, name, value, f"{path.name}, --set {name}")
            given[name] = value
    if "PROFILE" in declared:
        given["PROFILE"] = f"{profile}_dry_run" if dry_run else profile
    return given


def _read_profile(file: Path) -> dict[str, Any]:
    try:
        given = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise CourseError(f"{file}: not valid YAML: {error}") from None
    if not isinstance(given, dict):
        raise CourseError(f"{file}: expected lines like `NAME: value`.")
    return given


def _check_value(declared: Mapping[str, Parameter], name: str, value: Any, where: str) -> None:
    if name not in declared:
        raise CourseError(
            f"{where}: {name} is not a parameter of this notebook{_hint(name, declared)} "
            f"It declares {', '.join(declared)}."
        )
    expected = declared[name].type
    base = expected.partition("[")[0]
    fits = {
        "bool": isinstance(value, bool),
        "int": isinstance(value, int) and not isinstance(value, bool),
        "float": isinstance(value, int | float) and not isinstance(value, bool),
        "str": isinstance(value, str),
        "list": isinstance(value, list),
    }.get(base, True)
    if not fits:
        advice = (
            " YAML reads 1e-5 as text; write 1.0e-5." if base == "float" and isinstance(value, str) else ""
        )
        raise CourseError(f"{where}: {name} takes a value of type {expected}, got {value!r}.{advice}")


def _hint(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else "."


# ---- running -----------------------------------------------------------------------------------


def run_course(
    *,
    profile: str = DEFAULT_PROFILE,
    only: Sequence[str] = (),
    start: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    dry_run: bool = False,
    again: bool = False,
    jobs: int = 1,
    folder: Path = NOTEBOOKS,
    say: Callable[[str], None] = print,
) -> list[Outcome]:
    """Execute the chosen notebooks in order, `jobs` at a time; none is begun after one that fails.

    Everything is checked first. A notebook that was finished with the same code, parameters, library and
    checkpoints is not repeated.
    """
    overrides = dict(overrides or {})
    chosen = choose(find_notebooks(folder), only, start)
    plan = [(path, resolve_parameters(path, profile, overrides, dry_run=dry_run)) for path in chosen]
    declared = {parameter.name for path in chosen for parameter in read_parameters(path)}
    for name in overrides:
        if name not in declared:
            raise CourseError(
                f"--set {name}: none of the chosen notebooks declares it{_hint(name, sorted(declared))}"
            )
    if jobs < 1:
        raise CourseError(f"--jobs must be 1 or more, got {jobs}")
    stop, failed = threading.Event(), threading.Event()

    def work(path: Path, parameters: Mapping[str, Any] | None) -> Outcome | None:
        if stop.is_set() or failed.is_set():
            return None
        if parameters is None:
            return Outcome(path.stem, f"not in profile {profile}")
        place = f"{profile}_dry_run" if dry_run else profile
        outcome = _run_notebook(path, place, parameters, again, say, stop)
        if outcome.status == "failed":
            failed.set()  # a neighbour that runs may come to its end
        return outcome

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(work, path, parameters) for path, parameters in plan]
        try:
            outcomes = [future.result() for future in futures]
        except BaseException:  # Ctrl-C, or a run folder that cannot be written
            stop.set()
            raise
    return [outcome for outcome in outcomes if outcome is not None]


def choose(notebooks: Sequence[Path], only: Sequence[str], start: str | None) -> list[Path]:
    """Pick notebooks by name or number, keeping the order."""

    def find(name: str) -> Path:
        for path in notebooks:
            if name.removesuffix(".ipynb") in (path.stem, path.stem[:2]):
                return path
        stems = [path.stem for path in notebooks]
        raise CourseError(f"There is no notebook {name!r}{_hint(name, stems)} There are {', '.join(stems)}.")

    picked = [find(name) for name in only] or list(notebooks)
    if start is not None:
        first = find(start)
        picked = [path for path in picked if path.stem >= first.stem]
    return [path for path in notebooks if path in picked]


def _run_notebook(
    path: Path,
    profile: str,
    parameters: Mapping[str, Any],
    again: bool,
    say: Callable[[str], None],
    stop: threading.Event,
) -> Outcome:
    notebook = nbformat.read(path, as_version=4)
    target = runs_folder() / profile / path.stem
    finished, output = target / "finished.json", target / path.name
    digest = _digest(notebook, parameters)
    record = read_json(finished) if finished.exists() and output.exists() else {}
    if not again and record.get("digest") == digest:
        say(f"{path.stem}  finished before, not repeated (--again repeats it)")
        return Outcome(path.stem, "finished before", record["seconds"], record["peak_memory_mb"])
    write_atomically(target / "parameters.yaml", yaml.safe_dump(dict(parameters)))
    finished.unlink(missing_ok=True)
    code, seconds, memory = _papermill(path, output, target, _expected_seconds(notebook, profile), stop)
    if code != 0 and stop.is_set():
        return Outcome(path.stem, "stopped", seconds, memory)
    if code != 0:
        say(_explain_failure(path, output, target, code))
        return Outcome(path.stem, "failed", seconds, memory)
    record = {"digest": digest, "seconds": round(seconds, 1), "peak_memory_mb": round(memory)}
    write_json(finished, record | {"code_sha256": code_hash(notebook), "parameters": dict(parameters)})
    say(f"{path.stem}  ok, {_clock(seconds)}, {memory:.0f} MB")
    return Outcome(path.stem, "ok", seconds, memory)


def _papermill(
    path: Path, output: Path, target: Path, expected: float | None, stop: threading.Event
) -> tuple[int, float, float]:
    """Run papermill in a process of its own until it ends or `stop` is set: exit code, seconds, peak MB."""
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(path),
        str(output),
        "-f",
        str(target / "parameters.yaml"),
    ]
    command += ["-k", "python3", "--cwd", str(path.parent), "--no-progress-bar", "--log-level", "ERROR"]
    begun = time.monotonic()
    with (target / "papermill.log").open("w") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log)
        while True:
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
            if pid:
                break
            if stop.is_set():
                child.terminate()
            _live(path.stem, time.monotonic() - begun, expected)
            time.sleep(0.5)
    child.returncode = os.waitstatus_to_exitcode(status)
    _live_end(path.stem)
    peak = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return child.returncode, time.monotonic() - begun, peak


_running: dict[str, str] = {}  # notebook: how far it is


def _live(name: str, elapsed: float, expected: float | None) -> None:
    """The one line that moves while notebooks run; only where somebody watches."""
    if sys.stdout.isatty():
        left = f"about {_clock(max(0.0, expected - elapsed))} left" if expected else "no estimate yet"
        _running[name] = f"{name}  {_clock(elapsed)} elapsed, {left}"
        print(f"\r\033[K{'   '.join(list(_running.values()))}", end="", flush=True)


def _live_end(name: str) -> None:
    _running.pop(name, None)
    if sys.stdout.isatty():
        print("\r\033[K", end="", flush=True)


def _expected_seconds(notebook: nbformat.NotebookNode, profile: str) -> float | None:
    stamp = notebook.metadata.get("stamp", {})
    return stamp.get("seconds") if stamp.get("profile") == profile else None


def _explain_failure(path: Path, output: Path, target: Path, code: int) -> str:
    """Say which cell failed, with its first line and the last lines of the error."""
    if output.exists():
        executed = nbformat.read(output, as_version=4)
        numbers = [
            (n, cell) for n, cell in enumerate(_own_cells(executed), start=1) if cell.cell_type == "code"
        ]
        for number, cell in numbers:
            for shown in cell.outputs:
                if shown.output_type == "error":
                    first = cell.source.strip().splitlines()[0]
                    return (
                        f"{path.stem}  FAILED in cell {number} ({first}):\n"
                        f"    {shown.ename}: {shown.evalue}\n"
                        f"The executed notebook, with the traceback, is {output}. What was finished is kept; "
                        f"mend the cause and run the same command again."
                    )
    tail = "\n    ".join((target / "papermill.log").read_text(encoding="utf-8").strip().splitlines()[-5:])
    return f"{path.stem}  FAILED before or outside a cell (papermill ended with code {code}):\n    {tail}"


def _own_cells(executed: nbformat.NotebookNode) -> Iterator[nbformat.NotebookNode]:
    """The cells of the notebook itself, without those papermill put in."""
    for cell in executed.cells:
        tags = cell.metadata.get("tags", [])
        if not any(tag == "injected-parameters" or tag.startswith("papermill-error") for tag in tags):
            yield cell


def _digest(notebook: nbformat.NotebookNode, parameters: Mapping[str, Any]) -> str:
    """A hash of all that decides the result: code cells, parameters, library, shipped checkpoints."""
    digest = hashlib.sha256(code_hash(notebook).encode())
    digest.update(json.dumps(dict(parameters), sort_keys=True).encode())
    for file in sorted((ROOT / "lib").rglob("*.py")) + sorted(
        ROOT.glob("data/checkpoints/*/provenance.json")
    ):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def table(outcomes: Sequence[Outcome]) -> str:
    """The closing table: notebook, status, time and peak memory."""
    width = max([len("notebook"), *(len(outcome.notebook) for outcome in outcomes)])
    lines = [f"{'notebook':<{width}}  {'status':<16} {'min:sec':>8} {'peak MB':>8}"]
    for outcome in outcomes:
        measured = f"{_clock(outcome.seconds):>8} {outcome.peak_memory_mb:>8.0f}" if outcome.seconds else ""
        lines.append(f"{outcome.notebook:<{width}}  {outcome.status:<16} {measured}".rstrip())
    return "\n".join(lines)


# ---- stamping ----------------------------------------------------------------------------------


def stamp(path: Path) -> None:
    """Put the outputs of the last full cpu run into the committed notebook, and stamp what made them."""
    notebook = nbformat.read(path, as_version=4)
    target = runs_folder() / DEFAULT_PROFILE / path.stem
    finished, output = target / "finished.json", target / path.name
    if not finished.exists():
        raise CourseError(
            f"{path.stem}: no finished {DEFAULT_PROFILE} run to stamp; run `make course` first."
        )
    record = read_json(finished)
    if record["code_sha256"] != code_hash(notebook) or record["parameters"] != {"PROFILE": DEFAULT_PROFILE}:
        raise CourseError(f"{path.stem}: the last run had other code or parameters; run `make course` first.")
    executed = list(_own_cells(nbformat.read(output, as_version=4)))
    count = 0
    for cell, done in zip(notebook.cells, executed, strict=True):
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
            cell.outputs = [_normalised(shown, count) for shown in done.outputs]
            if "readme-figure" in cell.metadata.get("tags", []):
                _export_figure(cell, path)
        elif "card" in cell.metadata.get("tags", []):
            cell.source = MEASURED.sub(_measured(record), cell.source)
    origin = provenance()
    notebook.metadata.stamp = {
        "code_sha256": record["code_sha256"],
        "profile": DEFAULT_PROFILE,
        "versions": origin["versions"],
        "date": origin["date"],
        "seconds": record["seconds"],
        "peak_memory_mb": record["peak_memory_mb"],
    }
    write_atomically(path, nbformat.writes(notebook) + "\n")
    _update_readme(path, record)


def _update_readme(path: Path, record: Mapping[str, Any]) -> None:
    """Write time and memory into the notebook's row of the README's table, where it has one."""
    readme = path.parent.parent / "README.md"
    if readme.exists():
        row = re.compile(rf"(\| \[[^\]]*\]\(notebooks/{path.name}\) \|[^|\n]*\|)[^|\n]*\|[^|\n]*\|")
        measured = rf"\1 {_clock(record['seconds'])} | {record['peak_memory_mb']} MB |"
        write_atomically(readme, row.sub(measured, readme.read_text(encoding="utf-8")))


def _export_figure(cell: nbformat.NotebookNode, path: Path) -> None:
    """Keep the figure of a cell as a file too, for the README."""
    png = next(shown.data["image/png"] for shown in cell.outputs if "image/png" in shown.get("data", {}))
    figure = ROOT / "data" / "figures" / f"{path.stem}.png"
    figure.parent.mkdir(parents=True, exist_ok=True)
    figure.write_bytes(base64.b64decode(png))


def _measured(record: Mapping[str, Any]) -> str:
    return (
        f"{_clock(record['seconds'])} minutes, {record['peak_memory_mb']} MB at most (cpu profile, two cores)"
    )


def _normalised(shown: nbformat.NotebookNode, count: int) -> nbformat.NotebookNode:
    """An output without what differs from run to run for no reason."""
    shown = copy.deepcopy(shown)
    if shown.output_type == "execute_result":
        shown.execution_count = count
    return shown


# ---- command line ------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lib.course", description="Run the notebooks of the course."
    )
    parser.add_argument(
        "--profile",
        default=DEFAULT_PROFILE,
        help="cpu (the notebooks' own values) or one of notebooks/profiles/",
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="these notebooks, by name or number"
    )
    parser.add_argument("--from", dest="start", metavar="NAME", help="this notebook and those after it")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="override a parameter"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="the profile with small sizes, a random model and local rows: does it run, without downloads?",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="notebooks to run at a time; 2 where no GPU is shared and none needs another's results, else 1",
    )
    parser.add_argument("--again", action="store_true", help="repeat notebooks that were finished before")
    parser.add_argument("--list", action="store_true", help="list notebooks and parameters, run nothing")
    parser.add_argument(
        "--stamp", action="store_true", help="put the outputs of the last cpu run into notebooks/"
    )
    options = parser.parse_args(arguments)
    try:
        if options.list:
            print(_listing(choose(find_notebooks(), options.only, options.start)))
            return 0
        if options.stamp:
            for path in choose(find_notebooks(), options.only, options.start):
                stamp(path)
                print(f"{path.stem}  stamped")
            return 0
        outcomes = run_course(
            profile=options.profile,
            only=options.only,
            start=options.start,
            overrides=dict(_assignment(text) for text in options.set),
            dry_run=options.dry_run,
            again=options.again,
            jobs=options.jobs if options.jobs is not None else _default_jobs(options),
        )
    except (CourseError, RunFolderError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; notebooks that were finished are kept", file=sys.stderr)
        return 130
    print(f"\n{table(outcomes)}")
    return 1 if any(outcome.status == "failed" for outcome in outcomes) else 0


def _default_jobs(options: argparse.Namespace) -> int:
    """Two at a time on processors: a notebook takes one thread. At other profiles they need one another."""
    alone = options.profile not in (DEFAULT_PROFILE, "smoke") and not options.dry_run
    return 1 if alone else min(2, os.cpu_count() or 1)


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise CourseError(f"--set {text}: write NAME=VALUE.")
    return name, yaml.safe_load(value)


def _listing(notebooks: Sequence[Path]) -> str:
    lines = []
    for path in notebooks:
        lines.append(path.stem)
        lines += [f"    {p.name}: {p.type} = {p.default!r}  # {p.help}" for p in read_parameters(path)]
    return "\n".join(lines)
