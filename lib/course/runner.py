"""Run the notebooks in order: check all first, repeat nothing that is finished, stop after a failure."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import yaml

from lib.checked import close, raise_faults
from lib.course.execute import explain_failure, papermill
from lib.course.notebooks import NOTEBOOKS, CourseError, choose, clock, code_hash, find_notebooks
from lib.course.profiles import DEFAULT_PROFILE, Plan, plan
from lib.runs import ROOT, HeldError, held, located, provenance, read_json, write_atomically, write_json


@dataclass
class Outcome:
    notebook: str
    status: str
    seconds: float = 0.0
    peak_memory_mb: float = 0.0

    @property
    def failed(self) -> bool:
        return self.status in ("failed", "runs elsewhere")


def run_course(
    *,
    profile: str = DEFAULT_PROFILE,
    only: Sequence[str] = (),
    start: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    again: bool = False,
    jobs: int = 1,
    folder: Path = NOTEBOOKS,
    say: Callable[[str], None] = print,
) -> list[Outcome]:
    """Execute the chosen notebooks, `jobs` at a time, one alone in order; none is begun after one that fails.

    Everything is checked first, together. A notebook that was finished with the same code, parameters,
    library and data is not repeated.
    """
    if jobs < 1:
        raise CourseError(f"--jobs must be 1 or more, got {jobs}")
    chosen = choose(find_notebooks(folder), only, start)
    plans = [plan(path, profile, overrides or {}) for path in chosen]
    check_plans(plans, overrides or {})
    return run_plans(plans, again=again, jobs=jobs, say=say)


def run_plans(
    plans: Sequence[Plan],
    *,
    again: bool = False,
    jobs: int = 1,
    keep_going: bool = False,
    say: Callable[[str], None] = print,
) -> list[Outcome]:
    """Execute plans that were checked, `jobs` at a time; after a failure only with `keep_going`."""
    stop, failed = threading.Event(), threading.Event()

    def work(planned: Plan) -> Outcome | None:
        if stop.is_set() or failed.is_set():
            return None
        if planned.left_out:
            return Outcome(planned.name, planned.left_out)
        outcome = _run_notebook(planned, again, say, stop)
        if outcome.failed and not keep_going:
            failed.set()  # a neighbour that runs may come to its end
        return outcome

    # Side by side the longest goes first, so that none is left alone at the end.
    order = sorted(plans, key=lambda planned: -_expected_seconds(planned)) if jobs > 1 else plans
    with ThreadPoolExecutor(jobs) as pool:
        futures = {id(planned): pool.submit(work, planned) for planned in order}
        try:
            outcomes = [futures[id(planned)].result() for planned in plans]
        except BaseException:  # Ctrl-C, or a run folder that cannot be written
            stop.set()
            raise
    return [outcome for outcome in outcomes if outcome is not None]


def check_plans(plans: Sequence[Plan], overrides: Mapping[str, Any]) -> None:
    """Refuse all that is wrong, before anything runs."""
    raise_faults(_faults(plans, overrides), CourseError)


def _faults(plans: Sequence[Plan], overrides: Mapping[str, Any]) -> Iterator[str]:
    """All faults of all chosen notebooks; what an earlier one of them makes need not be there yet."""
    declared = {name for planned in plans for name in planned.values}
    for name in overrides:
        if name not in declared:
            yield f"--set {name}: none of the chosen notebooks declares it{close(name, declared)}."
    made: list[str] = []
    for planned in plans:
        yield from planned.check(made)
        if not planned.left_out:
            made.append(f"runs/{planned.place}/{planned.path.stem}")


def _run_notebook(planned: Plan, again: bool, say: Callable[[str], None], stop: threading.Event) -> Outcome:
    """One notebook, unless it was finished before or another process is at it."""
    target = planned.folder
    elsewhere = f"{planned.name}  another process runs it in {target}"
    try:
        with held(target.with_name(f".{target.name}.lock"), elsewhere):
            return _run_alone(planned, again, say, stop)
    except HeldError as error:
        say(str(error))
        return Outcome(planned.name, "runs elsewhere")


def _run_alone(planned: Plan, again: bool, say: Callable[[str], None], stop: threading.Event) -> Outcome:
    path, given, name = planned.path, planned.given, planned.name
    notebook = nbformat.read(path, as_version=4)
    target = planned.folder
    finished, output = target / "finished.json", target / path.name
    digest = _digest(notebook, planned)
    record = read_json(finished) if finished.exists() and output.exists() else {}
    if not again and record.get("digest") == digest:
        say(f"{name}  finished before, not repeated (--again repeats it)")
        return Outcome(name, "finished before", record["seconds"], record["peak_memory_mb"])
    write_atomically(target / "parameters.yaml", yaml.safe_dump(given))
    finished.unlink(missing_ok=True)
    code, seconds, memory = papermill(path, output, _expected_seconds(planned), stop)
    if code != 0 and stop.is_set():
        return Outcome(name, "stopped", seconds, memory)
    if code != 0:
        say(explain_failure(name, output, code))
        return Outcome(name, "failed", seconds, memory)
    record = {"digest": digest, "seconds": round(seconds, 1), "peak_memory_mb": round(memory)}
    write_json(finished, record | {"code_sha256": code_hash(notebook), "parameters": given})
    say(f"{name}  ok, {clock(seconds)}, {memory:.0f} MB")
    return Outcome(name, "ok", seconds, memory)


def _expected_seconds(planned: Plan) -> float:
    """What the notebook took when it was stamped, 0 where that was another profile."""
    stamp = nbformat.read(planned.path, as_version=4).metadata.get("stamp", {})
    return stamp.get("seconds", 0) if stamp.get("profile") == planned.place else 0


def _digest(notebook: nbformat.NotebookNode, planned: Plan) -> str:
    """A hash of what decides the result: code, parameters and what they name, library, data, versions."""
    digest = hashlib.sha256(code_hash(notebook).encode())
    digest.update(json.dumps(planned.given, sort_keys=True).encode())
    digest.update(json.dumps(provenance()["versions"]).encode())
    stamped = (ROOT / "data" / "figures", ROOT / "data" / "numbers")  # stamping writes these
    for file in sorted((ROOT / "lib").rglob("*.py")) + sorted((ROOT / "data").rglob("*.*")):
        if file.is_file() and file.parent not in stamped:
            digest.update(file.read_bytes())
    for place in map(located, planned.named_paths()):
        for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
            facts = file.stat() if file.exists() else file.lstat()  # of a link that leads nowhere
            digest.update(f"{file} {facts.st_size} {facts.st_mtime_ns}".encode())
    return digest.hexdigest()


def table(outcomes: Sequence[Outcome]) -> str:
    """The closing table: notebook, status, time and peak memory."""
    width = max([len("notebook"), *(len(outcome.notebook) for outcome in outcomes)])
    lines = [f"{'notebook':<{width}}  {'status':<20} {'min:sec':>8} {'peak MB':>8}"]
    for outcome in outcomes:
        measured = f"{clock(outcome.seconds):>8} {outcome.peak_memory_mb:>8.0f}" if outcome.seconds else ""
        lines.append(f"{outcome.notebook:<{width}}  {outcome.status:<20} {measured}".rstrip())
    return "\n".join(lines)
