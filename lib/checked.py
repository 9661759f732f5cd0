"""What a value may be, said by its annotation, and checked before any work: configurations and parameters.

@dataclass(frozen=True)
class Config:
    weights: Literal["full", "lora", "qlora"] = "qlora"
    learning_rate: Annotated[float, Range(above=0, high=0.1)] = 4e-4

    def __post_init__(self) -> None:
        check_fields(self)

Why not pydantic: it reads True as the choice 1, and says of what is allowed only the end that was passed.
"""

import difflib
import dis
import importlib.util
import inspect
import json
import math
import re
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from enum import Enum
from functools import partial
from operator import ge, gt, le, lt
from typing import Annotated, Any, Literal, get_args, get_origin

_NOUNS: dict[Any, str] = {bool: "True or False", int: "a whole number", float: "a finite number"}
_NOUNS |= {str: "text", types.NoneType: "None", ...: "..."}
TRACKERS = ("none", "tensorboard", "trackio", "wandb")  # known to work; others go by their package's name


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; the ends `above` and `below` do not belong to it.

    Other rules may stand beside a type in `Annotated`: what has `holds(value)`, a text that goes on where the
    type's ends, and maybe `known`, words that are offered to a value that resembles one of them.
    """

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None

    def holds(self, value: float) -> bool:
        ends = ((self.low, ge), (self.high, le), (self.above, gt), (self.below, lt))
        return all(end is None or keeps(value, end) for end, keeps in ends)

    def __str__(self) -> str:
        ends = {"from": self.low, "above": self.above, "up to": self.high, "below": self.below}
        return " ".join(f"{word} {end}" for word, end in ends.items() if end is not None)


def check_fields(instance: Any) -> None:
    """Hold every field of a dataclass to its annotation; raises ValueError that names all faults at once."""
    kind: type = type(instance)
    hints = typing.get_type_hints(kind, include_extras=True)
    values = {field.name: getattr(instance, field.name) for field in fields(instance)}
    each = (faults(f"{kind.__name__}.{name}", hints[name], value) for name, value in values.items())
    raise_faults(fault for found in each for fault in found)


def raise_faults(found: Iterable[str], error: type[Exception] = ValueError) -> None:
    """Raise all faults as one error, a line each; none, no error."""
    if lines := list(found):
        raise error("\n".join(lines))


def faults(name: str, annotation: Any, value: Any) -> Iterator[str]:
    """The faults of a value, a sentence each; elements of lists, tuples and mappings are named by place."""
    if _fits(annotation, value):
        for place, part, element in _elements(annotation, value):
            yield from faults(f"{name}{place}", part, element)
    else:
        advice = close(value, _choices(annotation)) if isinstance(value, str) else ""
        yield f"{name} takes {allowed(annotation)}, got {value!r}{advice}"


def allowed(annotation: Any) -> str:
    """What an annotation allows, in words: "a whole number from 1"."""
    origin, arguments = get_origin(annotation) or annotation, get_args(annotation)
    if origin is Annotated:
        return " ".join([allowed(arguments[0]), *map(str, _rules(arguments))])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(allowed(option) for option in arguments)
    if arguments and origin is not Literal:
        return f"a {origin.__name__.lower()} of ({', '.join(map(allowed, arguments))})"
    if choices := [repr(choice) for choice in _choices(annotation)]:
        return " or ".join(filter(None, (", ".join(choices[:-1]), choices[-1])))
    return _NOUNS.get(origin) or f"a {getattr(origin, '__name__', origin)}"


def is_json(value: Any) -> bool:
    """Whether JSON gives a value back as it is: text, finite numbers, lists, dicts with text as keys."""
    try:
        return bool(json.loads(json.dumps(value, allow_nan=False)) == value)
    except (TypeError, ValueError, RecursionError):
        return False


def identity(function: Any, inside: tuple[Any, ...] = ()) -> Any:
    """What tells a function from others of its name, as JSON: its text, what it was made with, its globals.

    ValueError where they cannot be written down, unless its attribute `setting`, as text, says what it is.
    `inside` those that are being written down, what is installed goes by its name.
    """
    if hasattr(function, "setting"):
        return function.setting
    if inside and (known := _known(function, inside)):
        return known
    write, name = partial(json.dumps, default=partial(identity, inside=(*inside, function))), ""
    try:
        if isinstance(function, partial):
            return json.loads(write([function.func, function.args, function.keywords]))
        if hasattr(function, "__self__"):
            raise TypeError("it belongs to an object")
        function = inspect.unwrap(function, stop=lambda one: hasattr(one, "__code__"))  # of a cache
        made = [function.__defaults__, function.__kwdefaults__, inspect.getclosurevars(function).nonlocals]
        found = [*json.loads(write([inspect.getsource(function), *made])), {}]
        for name in sorted(_globals(function.__code__) & function.__globals__.keys()):
            if (value := function.__globals__[name]) is not sys.modules.get(name):
                found[-1][name] = json.loads(write(value), parse_constant=str)  # NaN is not the same again
        return found
    except (AttributeError, OSError, TypeError, ValueError, RecursionError) as error:
        why = f"nothing says what {f'its global {name!r}' if name else 'it'} is ({error})"
        raise ValueError(f"{function!r}: {why}; give it an attribute `setting`") from None


def _globals(code: types.CodeType) -> set[str]:
    """The globals that a function reads, or what is written in it."""
    names = {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    return names.union(*(_globals(part) for part in code.co_consts if isinstance(part, types.CodeType)))


def _known(value: Any, inside: tuple[Any, ...]) -> Any:
    """What names say enough of, or short texts: modules, what is installed, who calls who called it."""
    if isinstance(value, types.ModuleType):
        return value.__name__
    if isinstance(value, (set, frozenset, re.Pattern)):
        return [value.pattern, value.flags] if isinstance(value, re.Pattern) else sorted(value, key=repr)
    place, owner = getattr(value, "__module__", None) or "", getattr(value, "__self__", None)
    file = str(getattr(sys.modules.get(place), "__file__", "")) if place != "__main__" else ""
    installed = place.partition(".")[0] in sys.stdlib_module_names or "-packages" in file
    free = hasattr(value, "__qualname__") and isinstance(owner, types.ModuleType | None)
    if free and (installed or any(value is one for one in inside)):
        return f"{place}.{value.__qualname__}"
    described = free and (place.startswith("lib.") or isinstance(value, type))  # by its own text
    return inspect.getsource(value) if described else None


def tracker_fault(report_to: Any) -> str | None:
    """What is wrong with a trainer's `report_to`: a tracker that is not installed; nothing is imported."""
    for name in [report_to] if isinstance(report_to, str) else report_to or []:
        packages = ("tensorboard", "tensorboardX") if name == "tensorboard" else (name,)
        if name != "none" and not any(p.isidentifier() and importlib.util.find_spec(p) for p in packages):
            advice = f"pip install it, or choose of {', '.join(TRACKERS)}"
            return f"report_to={name!r}: there is no such package here{close(name, TRACKERS) or ';'} {advice}"
    return None


def close(word: Any, known: Iterable[Any]) -> str:
    """ "; did you mean ...?" where a known word resembles this one, whatever its case; else nothing."""
    names = {str(name).lower(): name for name in known}
    found = difflib.get_close_matches(str(word).lower(), names, n=1)
    return f"; did you mean {names[found[0]]!r}?" if found else ""


def _fits(annotation: Any, value: Any) -> bool:
    """Whether a value is of this kind, whatever it holds."""
    origin, arguments = get_origin(annotation) or annotation, get_args(annotation)
    if origin is Annotated:
        return _fits(arguments[0], value) and all(rule.holds(value) for rule in _rules(arguments))
    if origin in (typing.Union, types.UnionType):
        return any(not any(faults("", option, value)) for option in arguments)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if origin is float:
        return _fits(int, value) or (isinstance(value, float) and math.isfinite(value))
    return origin is Any or (isinstance(value, origin) and not (origin is int and isinstance(value, bool)))


def _elements(annotation: Any, value: Any) -> Iterator[tuple[str, Any, Any]]:
    """Place, annotation and element of what a container holds; a key is checked under its own name."""
    origin, arguments = get_origin(annotation) or annotation, get_args(annotation)
    if origin is Annotated:
        yield from _elements(arguments[0], value)
    elif arguments and origin in (dict, Mapping):
        for key, element in value.items():
            yield f" (key {key!r})", arguments[0], key
            yield f"[{key!r}]", arguments[1], element
    elif arguments and origin in (list, tuple):
        for i, element in enumerate(value):
            yield f"[{i}]", arguments[0], element


def _rules(arguments: tuple[Any, ...]) -> list[Any]:
    """What `Annotated` holds beside the type."""
    return [rule for rule in arguments[1:] if hasattr(rule, "holds")]


def _choices(annotation: Any) -> list[Any]:
    """The words that a value could have been meant as."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return [member.value for member in annotation]
    known = list(getattr(annotation, "known", ()))  # of a rule
    return known + [choice for part in get_args(annotation) for choice in _choices(part)]
