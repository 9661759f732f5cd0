"""A check: the reader's function beside the library's on a few cases, and a hint for each usual mistake."""

from __future__ import annotations

import math
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Function = Callable[..., Any]
Cases = Sequence[tuple[Any, ...]]
_SHORT = 32  # numbers of a tensor that are shown


class NotYetError(AssertionError):
    """A function that is not right yet: what the check has to say. Jupyter shows it without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


@dataclass(frozen=True)
class Failed:
    """What stands for a value where a function raised."""

    error: Exception


@dataclass(frozen=True)
class Check:
    """Call it with the reader's function.

    `right` is the library's function: no formula stands here a second time. `cases` makes the arguments anew
    each time, so that nobody can spoil them. `mistakes` are wrong functions by their hints.
    """

    name: str
    right: Function
    cases: Callable[[], Cases]
    mistakes: Mapping[str, Function]

    def __call__(self, function: Function) -> None:
        """Print one line where `function` is right in all cases, else raise `NotYetError` with a hint."""
        if not callable(function):
            raise NotYetError(f"{self.name}: give the function itself, as in check.{self.name}({self.name}).")
        with torch.random.fork_rng(devices=[]):  # what a notebook draws later stays what it was
            count = self._compare(function)
        print(f"{self.name}: right on {count} cases")

    def _compare(self, function: Function) -> int:
        cases = self.cases()
        given = [attempt(function, case) for case in cases]
        for place, (case, value) in enumerate(zip(self.cases(), given, strict=True)):
            fault = difference(attempt(self.right, case), value)
            if fault or difference(self.cases()[place], cases[place]):
                what = fault or "changes its arguments; work on a copy"
                if all(value is None for value in given):
                    what += "; is there a `return`?"
                raise NotYetError(self._explain(given, place, what + _line(function, value)))
        return len(cases)

    def hint(self, given: Sequence[Any]) -> str | None:
        """The hint of the mistake that gives these values in all cases, if there is one."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # wrong functions may well deserve one
            for hint, wrong in self.mistakes.items():
                pairs = zip(self.cases(), given, strict=True)
                if all(difference(attempt(wrong, case), value) is None for case, value in pairs):
                    return hint
        return None

    def _explain(self, given: Sequence[Any], place: int, fault: str) -> str:
        """The hint, if there is one, and the first case that differs."""
        called = f"{self.name}({', '.join(map(shown, self.cases()[place]))})"
        lines = [f"{self.name}: not right yet.", f"Case {place + 1} of {len(given)}: {called} {fault}"]
        if hint := self.hint(given):
            lines[0] += f" {hint}"
        return "\n".join(lines)


def by_hand(check: Check, answer: Any) -> None:
    """Check numbers that the reader worked out, without telling the right ones; `...` is no answer yet."""
    if answer is ...:
        print(f"{check.name}: not answered yet")
        return
    try:
        check(lambda: answer)
    except NotYetError as error:
        raise NotYetError(str(error).split("\n")[0]) from None


def attempt(function: Function, case: tuple[Any, ...]) -> Any:
    """What a function gives, or `Failed` with what it raised."""
    try:
        return function(*case)
    except Exception as error:  # whatever the reader's code may raise is told in a sentence
        return Failed(error)


def _line(function: Function, value: Any) -> str:
    """Where in the reader's own lines it failed, as far as that is known."""
    if not isinstance(value, Failed):
        return ""
    file = getattr(getattr(function, "__code__", None), "co_filename", None)
    own = [frame for frame in traceback.extract_tb(value.error.__traceback__) if frame.filename == file]
    return f" (line {own[-1].lineno} of its cell: {own[-1].line})" if own and own[-1].line else ""


# ---- are two values the same? --------------------------------------------------------------------


def difference(right: Any, given: Any) -> str | None:
    """How a value differs from the right one, in words that follow a call; None where it does not.

    Rounding is forgiven. A list may stand for a tuple, and a number for a tensor without dimensions.
    """
    if isinstance(given, Failed):
        same = isinstance(right, Failed) and type(right.error) is type(given.error)
        why = " ".join(str(given.error).split())[:200]
        return None if same else f"raised {type(given.error).__name__}: {why}"
    if isinstance(right, Failed):
        return f"gave {shown(given)}, and should raise"
    if given is None and right is not None:
        return f"gave None, and {shown(right)} is right"
    if isinstance(right, torch.Tensor) and right.dim():
        if not isinstance(given, torch.Tensor):
            return f"gave a {type(given).__name__}, and a tensor of shape {tuple(right.shape)} is expected"
        if given.shape != right.shape:
            return f"gave the shape {tuple(given.shape)}, and {tuple(right.shape)} is expected"
    if _alike(right, given):
        return None
    if isinstance(right, torch.Tensor) and right.numel() > _SHORT:
        return _first_difference(right, given)
    return f"gave {shown(given)}, and {shown(right)} is right"


def _first_difference(right: torch.Tensor, given: torch.Tensor) -> str:
    """Of long tensors of one shape, the first place that differs."""
    place = (~torch.isclose(given.double(), right.double(), rtol=1e-4, atol=1e-6, equal_nan=True)).nonzero()[
        0
    ]
    at = tuple(place.tolist())
    return f"gave {shown(given[at].item())} at {list(at)}, and {shown(right[at].item())} is right"


def _alike(right: Any, given: Any) -> bool:
    if isinstance(right, Mapping) and isinstance(given, Mapping):
        return right.keys() == given.keys() and all(difference(right[k], given[k]) is None for k in right)
    if isinstance(right, list | tuple) and isinstance(given, list | tuple):
        pairs = zip(right, given, strict=False)
        return len(right) == len(given) and all(difference(*pair) is None for pair in pairs)
    try:
        if isinstance(right, torch.Tensor) and right.dim():
            close = torch.isclose(given.double(), right.double(), rtol=1e-4, atol=1e-6, equal_nan=True)
            return bool(close.all())
        if isinstance(right, float | torch.Tensor):
            return math.isclose(float(given), float(right), rel_tol=1e-4, abs_tol=1e-6)
        return bool(right == given)
    except (TypeError, ValueError, RuntimeError):  # of another kind altogether
        return False


# ---- values in a sentence ------------------------------------------------------------------------


def shown(value: Any, room: int = 160) -> str:
    """A value on one line: numbers rounded, and what is long cut in the middle."""
    text = _plain(value)
    return text if len(text) <= room else f"{text[: room // 2]} ... {text[-room // 4 :]}"


def _plain(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}" if value.numel() > _SHORT else _plain(value.tolist())
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str):
        return repr(str(value))
    if isinstance(value, list | tuple):
        inside = ", ".join(map(_plain, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside})"
    if isinstance(value, Mapping) and type(value) is dict:
        return "{" + ", ".join(f"{_plain(k)}: {_plain(v)}" for k, v in value.items()) + "}"
    if isinstance(value, bool | int | None):
        return repr(value)
    return getattr(value, "__name__", type(value).__name__)
