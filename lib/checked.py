"""What a value may be, said by its annotation, and checked before any work: configurations and parameters.

@dataclass(frozen=True)
class Config:
    weights: Literal["full", "lora", "qlora"] = "qlora"
    batches: Annotated[int, Range(1)] = 80
    learning_rate: Annotated[float, Range(above=0, high=0.1)] = 4e-4

    def __post_init__(self) -> None:
        check_fields(self)
"""

from __future__ import annotations

import difflib
import math
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from functools import cache
from typing import Annotated, Any, Literal, Protocol, get_args, get_origin

_NOUNS: dict[Any, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    None: "None",
    type(None): "None",
}
_CONTAINERS = (list, tuple, Sequence, dict, Mapping)


class Constraint(Protocol):
    """What stands beside the type in `Annotated`; its text goes on where the type's ends.

    One with an attribute `known` offers these words to a value that resembles one of them.
    """

    def holds(self, value: Any) -> bool: ...


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; the ends `above` and `below` do not belong to it."""

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None

    def holds(self, value: float) -> bool:
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        ends = {"from": self.low, "above": self.above, "up to": self.high, "below": self.below}
        return " ".join(f"{word} {end}" for word, end in ends.items() if end is not None)


def check_fields(instance: Any) -> None:
    """Hold every field of a dataclass to its annotation; raises ValueError that names all faults at once."""
    kind: type = type(instance)
    hints, where = _hints(kind), kind.__name__
    raise_faults(
        fault
        for field in fields(instance)
        for fault in faults(f"{where}.{field.name}", hints[field.name], getattr(instance, field.name))
    )


def check_value(name: str, annotation: Any, value: Any, where: str = "") -> None:
    """Hold one value to an annotation; raises ValueError with `where`, the name and what is allowed."""
    raise_faults(faults(f"{where}: {name}" if where else name, annotation, value))


def raise_faults(found: Iterable[str], error: type[Exception] = ValueError) -> None:
    """Raise all faults as one error, a line each; none, no error."""
    if lines := list(found):
        raise error("\n".join(lines))


def faults(name: str, annotation: Any, value: Any) -> Iterator[str]:
    """The faults of a value, a sentence each; elements of lists, tuples and mappings are named by place."""
    origin, arguments = get_origin(annotation) or annotation, get_args(annotation)
    if origin is Annotated:
        base, *constraints = arguments
        inner = list(faults(name, base, value))
        whole = not any(fault.startswith(f"{name} takes") for fault in inner)
        if whole and (inner or all(rule.holds(value) for rule in constraints if hasattr(rule, "holds"))):
            yield from inner  # of elements, if any
        else:
            yield _fault(name, annotation, value)
    elif origin in (typing.Union, types.UnionType):
        if all(any(faults(name, option, value)) for option in arguments):
            yield _fault(name, annotation, value)
    elif not _fits(origin, arguments, value):
        yield _fault(name, annotation, value)
    elif origin in _CONTAINERS and arguments:
        for place, item, element in _elements(origin, arguments, value):
            yield from faults(f"{name}{place}", item, element)


def allowed(annotation: Any) -> str:
    """What an annotation allows, in words: "a whole number from 1"."""
    origin, arguments = get_origin(annotation) or annotation, get_args(annotation)
    if origin is Annotated:
        rules = [str(rule) for rule in arguments[1:] if hasattr(rule, "holds")]
        return " ".join([allowed(arguments[0]), *rules])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(allowed(option) for option in arguments)
    if isinstance(origin, type) and issubclass(origin, Enum):
        return _listed([str(member) for member in origin])
    if origin is Literal:
        return _listed([repr(choice) for choice in arguments])
    if origin in _CONTAINERS and arguments:
        parts = ", ".join("..." if part is ... else allowed(part) for part in arguments)
        return f"a {origin.__name__.lower()} of ({parts})"
    return _NOUNS.get(origin) or f"a {getattr(origin, '__name__', origin)}"


def close(word: Any, known: Iterable[Any]) -> str:
    """ "; did you mean ...?" where a known word resembles this one, whatever its case; else nothing."""
    names = {str(name).lower(): name for name in known}
    found = difflib.get_close_matches(str(word).lower(), names, n=1)
    return f"; did you mean {names[found[0]]!r}?" if found else ""


def _fault(name: str, annotation: Any, value: Any) -> str:
    advice = close(value, _choices(annotation)) if isinstance(value, str) else ""
    return f"{name} takes {allowed(annotation)}, got {value!r}{advice}"


def _fits(origin: Any, arguments: tuple[Any, ...], value: Any) -> bool:
    if origin is Any or origin is None:
        return origin is Any or value is None
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if origin is Callable:
        return callable(value)
    if origin is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if origin is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin is tuple and arguments and arguments[-1] is not ...:
        return isinstance(value, tuple) and len(value) == len(arguments)
    if origin is Sequence:
        return isinstance(value, Sequence) and not isinstance(value, str)
    return isinstance(value, origin)


def _elements(origin: Any, arguments: tuple[Any, ...], value: Any) -> Iterator[tuple[str, Any, Any]]:
    """Place, annotation and element; the key of a mapping is checked under its own name."""
    if isinstance(value, Mapping):
        for key, element in value.items():
            yield f" (key {key!r})", arguments[0], key
            yield f"[{key!r}]", arguments[1], element
        return
    fixed = origin is tuple and arguments[-1] is not ...
    for i, element in enumerate(value):
        yield f"[{i}]", arguments[i if fixed else 0], element


def _choices(annotation: Any) -> list[Any]:
    """The words that a value could have been meant as."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return [member.value for member in annotation]
    known = list(getattr(annotation, "known", ()))  # of a constraint
    return known + [choice for part in get_args(annotation) for choice in _choices(part)]


def _listed(words: Sequence[str]) -> str:
    return " or ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)
