"""Notebook 01: duplicates inside a set, overlap between sets, and a report of both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd

from lib.sources.loading import Loaded
from lib.tasks import Task


def duplicates(examples: Iterable[Task]) -> list[list[Task]]:
    """Groups of two and more examples that ask the same question (normalised text)."""
    groups: dict[str, list[Task]] = {}
    for example in examples:
        groups.setdefault(example.key, []).append(example)
    return [group for group in groups.values() if len(group) > 1]


def overlap(first: Iterable[Task], second: Iterable[Task]) -> list[tuple[Task, Task]]:
    """Pairs of examples, one of each set, that ask the same question."""
    known = {example.key: example for example in first}
    return [(known[example.key], example) for example in second if example.key in known]


def report(sets: Mapping[str, Loaded]) -> pd.DataFrame:
    """A line for each set: rows, examples, broken rows, duplicates, contradictions, questions shared."""
    lines = {}
    for name, loaded in sets.items():
        groups = duplicates(loaded.examples)
        shared = {
            other: len({pair[0].key for pair in overlap(loaded.examples, rest.examples)})
            for other, rest in sets.items()
            if other != name
        }
        lines[name] = {
            "rows": len(loaded.examples) + len(loaded.problems),
            "examples": len(loaded.examples),
            "broken": len(loaded.problems),
            "duplicates": sum(len(group) - 1 for group in groups),
            "contradictions": sum(len({example.answer for example in group}) > 1 for group in groups),
            "shared with": ", ".join(f"{other} ({n})" for other, n in shared.items() if n) or "none",
        }
    return pd.DataFrame.from_dict(lines, orient="index")
