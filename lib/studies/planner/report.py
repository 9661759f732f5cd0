"""A plan in words: every stage's terms with their arithmetic, disk, hours; what does not fit, and a cure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from lib.checked import raise_faults
from lib.course.notebooks import CourseError, choose, find_notebooks
from lib.course.profiles import plan
from lib.studies.planner import formulas as f
from lib.studies.planner.hours import ASSUMED
from lib.studies.planner.levers import change, fits
from lib.studies.planner.machines import Machine
from lib.studies.planner.models import PlanError
from lib.studies.planner.stages import stages
from lib.studies.planner.training import Stage, Values

NO_GPU = (
    "there is no GPU here. `make dry-run PROFILE={profile}` runs the profile small, without one; "
    "MACHINE=24gb plans for another machine."
)


@dataclass(frozen=True)
class Planned:
    """The stages of all notebooks of a profile on a machine."""

    profile: str
    machine: Machine
    values: Mapping[str, Values]  # of each notebook
    stages: Sequence[Stage]

    @classmethod
    def of(
        cls, profile: str, machine: Machine, *, only: Sequence[str] = (), overrides: Values | None = None
    ) -> Planned:
        """Plan the notebooks' values, resolved as the runner does. Raises CourseError or PlanError."""
        made = [plan(path, profile, overrides or {}) for path in choose(find_notebooks(), only, None)]
        raise_faults([fault for one in made for fault in one.check()], CourseError)
        values = {one.path.stem: one.values for one in made if one.left_out is None}
        found = [stage for name, given in values.items() for stage in stages(name, given, machine)]
        if found and not machine.devices:
            raise PlanError(NO_GPU.format(profile=profile))
        return cls(profile, machine, values, found)

    def faults(self) -> Iterator[str]:
        """What cannot run on this machine, with what to change; nothing if all fits."""
        for name, given in self.values.items():
            mine = [stage for stage in self.stages if stage.notebook == name]
            wanted = given.get("NUM_PROCESSES", 1)
            if mine and wanted > self.machine.count:
                has = f"{self.machine.name} has {self.machine.count} devices"
                yield f"{name}: NUM_PROCESSES={wanted}, but {has}: set it to {self.machine.count}."
            yield from (f"{name}, {stage.name}: {stage.fault}." for stage in mine if stage.fault)
            tight = [stage for stage in mine if not fits(stage, self.machine)]
            yield from (_tight(stage, self.machine) for stage in tight)
            if tight:
                yield f"    {change(name, given, self.machine)}"
        if self.disk() > self.machine.disk:
            yield f"disk: {self.disk():.0f} GB of {self.machine.disk} GB. Delete what is done between runs."

    def disk(self) -> float:
        """GB in all."""
        return sum(term.bytes for stage in self.stages for term in stage.disk) / 1e9

    def hours(self) -> float:
        return sum(cost.hours for stage in self.stages for cost in stage.hours)


def _tight(stage: Stage, machine: Machine) -> str:
    held = (
        f", {machine.taken:.1f} of it held by another process" if machine.taken and not stage.shared else ""
    )
    most = stage.largest
    return (
        f"{stage.notebook}, {stage.name}: {stage.gib:.1f} GiB do not fit into {machine.memory:.1f} GiB{held} "
        f"with {f.FREE:.0%} left. Most is {most.kind}: {most.gib:.1f} GiB = {most.formula}."
    )


# ---- words and tables ----------------------------------------------------------------------------


def full(planned: Planned) -> str:
    """Every term of every stage."""
    lines = [f"profile {planned.profile} on {planned.machine}", f"assumed: {ASSUMED}."]
    for stage in planned.stages:
        lines += ["", _headline(stage, planned.machine)]
        lines += [f"    {term}" for term in stage.terms]
        lines += [
            f"    disk {term.kind:<12} {term.bytes / 1e9:6.1f} GB  = {term.formula}" for term in stage.disk
        ]
        lines += [f"    {cost}" for cost in stage.hours]
    return "\n".join([*lines, "", _closing(planned)])


def brief(planned: Planned) -> str:
    """A line for each stage."""
    lines = [f"profile {planned.profile} on {planned.machine}"]
    return "\n".join(
        [*lines, *(_headline(stage, planned.machine) for stage in planned.stages), _closing(planned)]
    )


def _headline(stage: Stage, machine: Machine) -> str:
    hours = sum(cost.hours for cost in stage.hours)
    words = f"{stage.notebook}, {stage.name:<17} {stage.gib:6.1f} of {machine.memory:.1f} GiB"
    words += f", {1 - stage.gib / machine.memory:4.0%} left" if fits(stage, machine) else ", DOES NOT FIT"
    return words + (f", {hours:.1f} h" if hours else "")


def _closing(planned: Planned) -> str:
    return f"in all about {planned.hours():.0f} hours and {planned.disk():.0f} GB of disk"


def table(planned: Planned) -> pd.DataFrame:
    """A row for each stage: GiB by kind of term, in all, and hours."""
    rows = {}
    for stage in planned.stages:
        row: dict[str, float] = {}
        for term in stage.terms:
            row[term.kind] = row.get(term.kind, 0.0) + term.gib
        hours = sum(cost.hours for cost in stage.hours)
        rows[stage.notebook, stage.name] = row | {"all": stage.gib, "hours": hours}
    found = pd.DataFrame.from_dict(rows, orient="index").fillna(0.0)
    last = [name for name in ("all", "hours") if name in found]
    return found[[*(name for name in found if name not in last), *last]]
