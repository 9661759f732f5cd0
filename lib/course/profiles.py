"""The values that a profile and `--set` give to a notebook, checked before anything runs."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lib.checked import close
from lib.course.declared import Parameter, missing_places, read_parameters, value_faults
from lib.course.notebooks import CourseError
from lib.runs import located, run_folder

DEFAULT_PROFILE = "cpu"  # the values written in the notebooks themselves


@dataclass
class Plan:
    """What a notebook is to run with: `given` from outside, `values` with defaults; or why it is left out."""

    path: Path
    place: str  # the profile's folder in runs/
    parameters: Sequence[Parameter]
    given: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    left_out: str | None = None
    faults: list[str] = field(default_factory=list)

    @property
    def values(self) -> dict[str, Any]:
        return {p.name: self.given.get(p.name, p.default) for p in self.parameters}

    @property
    def name(self) -> str:
        """The notebook, with the run's name where it has one."""
        return "/".join(filter(None, [self.path.stem, self.values.get("RUN_NAME")]))

    @property
    def folder(self) -> Path:
        """Where the notebook keeps its run."""
        return run_folder(self.path.stem, self.place, self.values.get("RUN_NAME", ""))

    def named_paths(self) -> list[str]:
        """The folders and files, models included, that the values name."""
        named = [self.values[parameter.name] for parameter in self.parameters if parameter.names_a_place]
        return [name for name in named if name and located(name).exists()]

    def give(self, values: Mapping[str, Any], where: str) -> None:
        """Take values over; a name that is not declared, or that is not given so, is a fault."""
        declared = [parameter.name for parameter in self.parameters]
        for name, value in values.items():
            if name not in declared:
                unknown = f"{name} is not a parameter of this notebook{close(name, declared)}"
                self.faults.append(f"{where}: {unknown}. It declares {', '.join(declared)}.")
            elif name == "PROFILE":
                self.faults.append(f"{where}: PROFILE is chosen with --profile, not here.")
            else:
                self.given[name], self.origin[name] = value, where

    def override(self, values: Mapping[str, Any]) -> None:
        """Take over what `--set` names; a name that this notebook does not declare is meant for others."""
        for name in values:
            if name in {parameter.name for parameter in self.parameters}:
                self.give({name: values[name]}, f"{self.path.name}, --set {name}")

    def check(self, made: Sequence[str] | None = None) -> Iterator[str]:
        """All faults; with `made`, folders that will be there, also what its values name and is not there."""
        yield from self.faults
        if self.left_out is None:
            origin = {name: self.origin.get(name, self.path.name) for name in self.values}
            yield from value_faults(self.path.stem, self.parameters, self.values, origin)
            if made is not None:
                try:
                    _ = self.folder
                except (ValueError, TypeError) as error:
                    yield f"{self.path.name}: {error}"
                yield from missing_places(self.parameters, self.values, origin, made)


def plan(path: Path, profile: str, overrides: Mapping[str, Any]) -> Plan:
    """A notebook's values: the profile's file, and over it `--set`."""
    made = Plan(path, profile, read_parameters(path))
    if profile != DEFAULT_PROFILE:
        profiles = path.parent / "profiles"
        known = [DEFAULT_PROFILE, *sorted({file.parent.name for file in profiles.glob("*/[0-9]*.yaml")})]
        if profile not in known:  # jobs lie beside them
            there = f"There are {', '.join(known)}."
            raise CourseError(f"There is no profile {profile!r}{close(profile, known)}. {there}")
        file = profiles / profile / f"{path.stem}.yaml"
        if not file.exists():
            made.left_out = f"not in profile {profile}"
            return made
        made.give(read_values(file), f"{path.name}, profile file {profile}/{file.name}")
    made.override(overrides)
    if "PROFILE" in {parameter.name for parameter in made.parameters}:
        made.given["PROFILE"] = profile
    return made


def solution_plan(path: Path) -> Plan:
    """A solution runs as it stands, beside the notebooks of the cpu profile."""
    return Plan(path, f"{DEFAULT_PROFILE}/solutions", parameters=())


class Once(yaml.SafeLoader):
    """YAML in which a key stands once, as of two the second would win, and a number is what it looks like."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        with suppress(AttributeError, LookupError, ValueError):  # as of 2024-13-45, which looks like a date
            made = super().construct_object(node, deep)  # type: ignore[no-untyped-call]
            if not isinstance(made, float | int) or not re.match("[+-]?(0[0-7_]+$|.*:)", str(node.value)):
                return made  # and 010 would be 8, 1:30 would be 90
        plain = "text goes in quotes, and a number has no leading 0 and no colon"
        fault = f"{str(node.value)[:60]!r} is no plain {node.tag.rpartition(':')[2]}: {plain}"
        raise yaml.MarkedYAMLError(fault, node.start_mark)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
        if twice := [key for number, key in enumerate(keys) if key in keys[:number]]:
            raise yaml.YAMLError(f"{twice[0]} stands there twice")
        return super().construct_mapping(node, deep)


def read_values(file: Path) -> dict[str, Any]:
    """The lines `NAME: value` of a YAML file; CourseError where it holds something else."""
    given = _read(file.read_text(encoding="utf-8", errors="surrogateescape"), str(file)) or {}
    if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
        raise CourseError(f"{file}: expected lines like `NAME: value`.")
    return given


def assignment(text: str) -> tuple[str, Any]:
    """`NAME=VALUE` of the command line, the value read as in a profile file."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise CourseError(f"--set {text}: write NAME=VALUE.")
    return name, _read(value, f"--set {text:.80}")


def _read(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Once)
    except (yaml.YAMLError, RecursionError) as error:
        raise CourseError(f"{where}: not plain YAML in UTF-8: {error}") from None
