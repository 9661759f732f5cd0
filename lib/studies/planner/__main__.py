"""`python -m lib.studies.planner PROFILE`: plan it, and refuse what cannot fit."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from lib.course.notebooks import CourseError
from lib.course.profiles import assignment
from lib.studies.planner.machines import HERE, find_machine, machine_of
from lib.studies.planner.models import PlanError
from lib.studies.planner.report import Planned, brief, full


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the plan: 0 if all fits, 1 if something does not, 2 if nothing can be planned."""
    options = _parser().parse_args(arguments)
    try:
        machine = find_machine(options.machine or machine_of(options.profile))
        overrides = dict(assignment(text) for text in options.set)
        planned = Planned.of(options.profile, machine, only=options.only, overrides=overrides)
    except (PlanError, CourseError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(brief(planned) if options.brief else full(planned))
    faults = list(planned.faults())
    if faults:
        print("\n".join(["", "does not fit:", *faults]), file=sys.stderr)
    return int(bool(faults))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lib.studies.planner", description="Plan a profile.")
    parser.add_argument("profile", help="one of notebooks/profiles/")
    machine = (
        f"of data/machines.yaml, or {HERE!r}: what torch sees; else the one that the profile is made for"
    )
    parser.add_argument("--machine", metavar="NAME", help=machine)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these notebooks")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="override a parameter"
    )
    parser.add_argument("--brief", action="store_true", help="a line for each stage")
    return parser


if __name__ == "__main__":
    sys.exit(main())
