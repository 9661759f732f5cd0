"""Notebook 01: run a program that a response holds, and compare the values that it claims with real ones."""

from __future__ import annotations

import ast
import io
import math
import tokenize
from collections.abc import Callable
from typing import Any

from lib.sandbox.run import run_python
from lib.studies.shared import split_simulated_output

CODE_SECONDS = 5.0
CODE_MEGABYTES = 256


def check_program(program: str, is_right: Callable[[str], bool]) -> tuple[str, str] | None:
    """Run a program, and compare its answer and the intermediate values that it claims with real ones.

    ARM's layout claims them in `output = {...}` after `>>> call()`; the dial world's programs in a
    comment at the end of a line, which is the value of the variable that the line sets.
    """
    try:
        if ">>> " in program:
            source, claimed = _arm_program(program)
        else:
            source, claimed = _commented_program(program)
    except (SyntaxError, tokenize.TokenError, ValueError, RecursionError, MemoryError) as error:
        return "code cannot be read", str(error)
    result = run_python(source, timeout=CODE_SECONDS, memory_mb=CODE_MEGABYTES)
    if not result.ok:
        return "code fails", str(result.error)
    actual = result.value
    if not isinstance(actual, dict) or "answer" not in actual:
        return "code has no answer", f"the call returns {actual!r}"[:200]
    if not is_right(str(actual["answer"])):
        return "code computes another answer", f"{actual['answer']!r}"
    for name, value in claimed.items():
        if name not in actual or not _same(value, actual[name]):
            return "code claims another value", f"{name}: {value!r} instead of {actual.get(name)!r}"
    return None


def _arm_program(text: str) -> tuple[str, dict[Any, Any]]:
    """ARM's layout: a program that ends in the call, and the dictionary claimed for it."""
    program, claimed = split_simulated_output(text)
    if not isinstance(claimed, dict) or "answer" not in claimed:
        raise ValueError("no output that is a dictionary with an answer")
    return program, claimed


def _commented_program(program: str) -> tuple[str, dict[Any, Any]]:
    """A script: the source with a probe after each line whose comment is one word, and those words."""
    lines = program.split("\n")
    assigned = {}  # line number: the variable it sets last
    for node in ast.walk(ast.parse(program)):
        if isinstance(node, ast.Assign | ast.AugAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            name = next(part.id for part in ast.walk(target) if isinstance(part, ast.Name))
            assigned[node.end_lineno] = name
    claimed = {}
    for token in tokenize.generate_tokens(io.StringIO(program).readline):
        number, column = token.start
        word = token.string.lstrip("# ").strip()
        if token.type == tokenize.COMMENT and number in assigned and " " not in word:
            claimed[f"line {number}"] = word
            code = lines[number - 1][:column].rstrip().rstrip(";")
            lines[number - 1] = f"{code}; _note({number}, {assigned[number]})"
    if not claimed:
        raise ValueError("the program claims no intermediate value")
    note = "def _note(n, v): _seen[f'line {n}'] = str(v)"
    source = ["_seen = {}", note, *lines, "answer = {'answer': str(answer), **_seen}"]
    return "\n".join(source), claimed


def _same(claimed: Any, actual: Any) -> bool:
    """Equal, floats to six digits: nobody writes out sixteen."""
    if isinstance(claimed, dict) and isinstance(actual, dict):
        return claimed.keys() == actual.keys() and all(_same(claimed[k], actual[k]) for k in claimed)
    if isinstance(claimed, list | tuple) and isinstance(actual, list | tuple):
        return len(claimed) == len(actual) and all(map(_same, claimed, actual))
    if isinstance(claimed, int | float) and isinstance(actual, int | float):
        return math.isclose(claimed, actual, rel_tol=1e-6, abs_tol=1e-9)
    return claimed == actual
