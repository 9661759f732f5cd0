"""What a parameter may be, as its comment says in brackets: `STEPS: int = 80  # [1..] updates`.

    1..  0..1  >0..0.1       numbers from, from and to, above and to
    full | lora | qlora      one of these; `empty` is ""
    1.. | -1                 a number from 1, or -1
    text  name  url          any text; a word that can name a folder; http(s)://...
    variable                 the name of an environment variable
    folder  file             a path that is there
    source                   dial, or a dataset of notebook 01
    model                    a shipped checkpoint, a folder, or a hub name like org/name@commit
    real model               the same without the shipped ones

What depends on other parameters follows after a comma: `needs TEACHER_URL` (useless without it; `*_SOURCES`:
without any), `divides PROMPTS * 8`, `multiple of 2`, `at most STEPS`, `at least len(DEPTHS)`, `not </think>`,
`not fsdp2 zero3 with WEIGHTS qlora`. In a list the rule holds for every element; one is there, none twice.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import filter as matching
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal

import yaml

from lib.checked import Range, is_json
from lib.runs import ROOT, located

SOURCES: dict[str, Any] = yaml.safe_load((ROOT / "data" / "sources.yaml").read_text(encoding="utf-8"))
SHIPPED = tuple(sorted(path.parent.name for path in ROOT.glob("data/checkpoints/*/provenance.json")))

REASONS = {"qlora": "weights in 4 bits cannot be cut into parts; take 'lora', or let each process have all"}
_RANGE = re.compile(r"(>?)(-?[\d.e-]*?)\.\.(-?[\d.e-]*)")
_NAME = re.compile(r"[A-Za-z0-9][\w.=+-]*")
_HUB = re.compile(r"[\w-][\w.-]*/[\w.-]+(@[\w.-]+)?")


@dataclass(frozen=True)
class Kind:
    """A rule for `Annotated`, see lib.checked; `known` are words that a wrong one may have meant."""

    says: str
    holds: Callable[[Any], bool]
    known: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.says


def is_path(name: str) -> bool:
    """Whether a model's name is meant as a folder: absolute, deep, or there."""
    return bool(name) and (name[0] in "./~" or name.count("/") > 1 or located(name).is_dir())


def _is_model(name: str) -> bool:
    return is_path(name) or bool(_HUB.fullmatch(name))


_REAL = "a folder, or a hub name like org/name@commit"
KINDS = {
    "text": Kind("that is not empty", bool),
    "name": Kind("of letters, digits and _.=+-", lambda text: bool(_NAME.fullmatch(text))),
    "variable": Kind("of capitals, digits and _", lambda text: bool(re.fullmatch("[A-Z_][A-Z0-9_]*", text))),
    "url": Kind("like http://host:port/v1", lambda text: bool(re.fullmatch(r"https?://[^\s/]+\S*", text))),
    "folder": Kind("that names a folder", bool),
    "file": Kind("that names a file", bool),
    "source": Kind(f"out of dial, {', '.join(SOURCES)}", {"dial", *SOURCES}.__contains__, ("dial", *SOURCES)),
    "model": Kind(
        f"that names a model: {', '.join(SHIPPED)}, {_REAL}",
        lambda text: text in SHIPPED or _is_model(text),
        SHIPPED,
    ),
    "real model": Kind(f"that names a model: {_REAL}", _is_model),
}
_JSON = Annotated[dict, Kind("with text as keys and numbers, text, lists and dicts as values", is_json)]
_EACH_ONCE = Kind("with at least one, none twice", lambda list: 0 < len(list) == len({*map(repr, list)}))
TYPES: dict[str, Any] = {"bool": bool, "int": int, "float": float, "str": str, "dict": _JSON}
LARGEST = 2**32 - 1  # of a whole number: what NumPy takes for a seed, and more than anything can be counted


def annotation(type_name: str, rule: str) -> Any:
    """The annotation of a type and its rule: "int" and "1.." give Annotated[int, Range(1)]."""
    if type_name.startswith("list["):
        element = annotation(type_name[5:-1], rule)
        return Annotated[list[element], _EACH_ONCE]  # type: ignore[valid-type]
    base = TYPES[type_name]
    return reduce(or_, [_option(base, part.strip()) for part in rule.split("|")]) if rule else base


def _option(base: Any, rule: str) -> Any:
    if base is str:
        kind = KINDS.get(rule)
        return Annotated[str, kind] if kind else Literal["" if rule == "empty" else rule]
    if found := _RANGE.fullmatch(rule):
        above, low, high = found.groups()
        high = high or (LARGEST if base is int else None)
        ends = {"above" if above else "low": base(low) if low else None, "high": base(high) if high else None}
        return Annotated[base, Range(**ends)]
    return Literal[base(rule)]


def dependency_fault(relation: str, name: str, values: Mapping[str, Any]) -> str | None:
    """What is wrong between a parameter and those it depends on; see the head of this file."""
    word, _, on = relation.partition(" ")
    value = values[name]
    if word == "needs":
        others = {other: values[other] for other in matching(values, on)}
        useless = value and all(given in ("", "dial", ["dial"], None, False) for given in others.values())
        needed = ", or ".join(f"{other}, which is {given!r}" for other, given in others.items())
        return f"{name}={value!r} is useless: it needs {needed}" if useless else None
    if word == "not" and " with " not in on:
        return f"{name} must not be {on.replace(' ', ' or ')}, got {value!r}" if value in on.split() else None
    if word == "not":
        refused, _, other = on.partition(" with ")
        beside, choice = other.split()
        clash = value in refused.split() and values[beside] == choice
        why = f": {REASONS[choice]}" if choice in REASONS else ""
        return f"{name}={value!r} does not go with {beside}={choice!r}{why}" if clash else None
    if word == "multiple":
        return f"{name} must be a {relation}, got {value!r}" if value % int(on.removeprefix("of ")) else None
    number = eval(re.sub("^(least|most) ", "", on), {"__builtins__": {"len": len}}, dict(values))
    if word == "divides":
        return f"{name} must divide {on} = {number:g}, got {value!r}" if number % value else None
    beyond = value < number if on.startswith("least ") else value > number
    return f"{name} must be {relation} = {number:g}, got {value!r}" if beyond else None


def places(rule: str) -> set[str]:
    """The kinds of path that a rule allows."""
    return {part.strip() for part in rule.split("|")} & {"folder", "file", "model", "real model"}


def missing_place(rule: str, value: str) -> str | None:
    """What is not there though the value names it: a folder, a file, the folder of a model."""
    kinds, place = places(rule), located(value)
    models = kinds & {"model", "real model"} and is_path(value)
    if (models or "folder" in kinds) and not place.is_dir():
        return f"{value!r}: there is no such folder"
    if "file" in kinds and not place.is_file():
        return f"{value!r}: there is no such file"
    if models and not any((place / file).exists() for file in ("config.json", "adapter_config.json")):
        return f"{value!r}: the folder holds no model (no config.json)"
    return None
