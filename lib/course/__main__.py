"""The command line of the course: `python -m lib.course --help`."""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from lib.course.declared import read_parameters
from lib.course.notebooks import CourseError, choose, find_notebooks, find_solutions
from lib.course.profiles import DEFAULT_PROFILE, assignment, plan, solution_plan
from lib.course.runner import run_course, run_plans, table
from lib.course.stamp import stamp
from lib.runs import ROOT, RunFolderError

_FLAGS = {
    "--again": "repeat notebooks that were finished before",
    "--list": "list notebooks and parameters, run nothing",
    "--solutions": "the solutions of the exercises in place of the notebooks, as they stand",
    "--stamp": "put the outputs of the last cpu run into notebooks/",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the words of the command line ask for; the exit code."""
    options = _parser().parse_args(arguments)
    try:
        found = find_solutions() if options.solutions else find_notebooks()
        chosen = choose(found, options.only, options.start)
        if options.list:
            print(_listing(chosen))
        elif options.stamp:
            for path in chosen:
                stamp(solution_plan(path) if options.solutions else plan(path, DEFAULT_PROFILE, {}))
                print(f"{path.stem}  stamped")
        else:
            return _run(options, chosen)
    except (CourseError, RunFolderError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; notebooks that were finished are kept", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m lib.course", description="Run the notebooks of the course.")
    profile = "cpu (the notebooks' own values) or one of notebooks/profiles/"
    parser.add_argument("--profile", default=DEFAULT_PROFILE, help=profile)
    chosen = "these notebooks, by name or number"
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help=chosen)
    parser.add_argument("--from", dest="start", metavar="NAME", help="this notebook and those after it")
    given = {"action": "append", "default": [], "metavar": "NAME=VALUE"}
    parser.add_argument("--set", **given, help="override a parameter")  # type: ignore[arg-type]
    jobs = "notebooks to run at a time; 2 where no GPU is shared and none needs another's results, else 1"
    parser.add_argument("--jobs", type=int, metavar="N", help=jobs)
    machine = "plan a real profile for this machine of data/machines.yaml; else for the one at hand"
    parser.add_argument("--machine", default="here", metavar="NAME", help=machine)
    for flag, help in _FLAGS.items():
        parser.add_argument(flag, action="store_true", help=help)
    return parser


def _run(options: argparse.Namespace, chosen: Sequence[Path]) -> int:
    # Two at a time on processors: a notebook takes one thread. At other profiles they need one another.
    usual = 1 if _is_real(options) else min(2, os.cpu_count() or 1)
    jobs = usual if options.jobs is None else options.jobs
    if options.solutions:
        if options.set or options.profile != DEFAULT_PROFILE:
            raise CourseError("--solutions takes no --profile and no --set: a solution runs as it stands.")
        outcomes = run_plans([solution_plan(path) for path in chosen], again=options.again, jobs=jobs)
    elif _is_real(options) and not _fits(options, chosen):
        return 1
    else:
        given = dict(assignment(text) for text in options.set)
        which = {"only": options.only, "start": options.start, "again": options.again}
        outcomes = run_course(**which, jobs=jobs, profile=options.profile, overrides=given)
    print(f"\n{table(outcomes)}")
    return 1 if any(outcome.failed for outcome in outcomes) else 0


def _is_real(options: argparse.Namespace) -> bool:
    return options.profile not in (DEFAULT_PROFILE, "smoke")


def _fits(options: argparse.Namespace, chosen: Sequence[Path]) -> bool:
    """Ask the planner, which says what does not fit; a process of its own, for it stands above this room."""
    words = [options.profile, "--brief", "--machine", options.machine]
    words += ["--only", *(path.stem for path in chosen)]
    words += [word for text in options.set for word in ("--set", text)]
    return subprocess.run([sys.executable, "-m", "lib.studies.planner", *words], cwd=ROOT).returncode == 0


def _listing(notebooks: Sequence[Path]) -> str:
    lines = []
    for path in notebooks:
        lines.append(path.stem)
        for p in read_parameters(path):
            lines += [f"    {p.name} = {p.default!r}  # {p.help}", f"        {p.allowed}"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
