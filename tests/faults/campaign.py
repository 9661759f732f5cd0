"""Columns share the time, every case is kept as it ends, and the table says what did not hold."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib.runs import write_atomically
from lib.writing import KeptLines


@dataclass(frozen=True)
class Found:
    """What a case did, how many things it tried, and what did not hold."""

    what: str
    tried: int = 1
    broken: Sequence[str] = ()


Case = Callable[[random.Random, Path, int], Found]  # the last: the number of the case


@dataclass(frozen=True)
class Column:
    """A column of the table: `share` of the time, at most `most` cases (0: as many as there is time for)."""

    case: Case
    share: float = 1.0
    most: int = 0


@dataclass
class Campaign:
    """Cases of all columns for one seed, kept in `folder`; killed, it goes on after the last whole case."""

    columns: Mapping[str, Column]
    seed: int
    folder: Path
    rows: list[dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        self.kept = KeptLines(self.folder / "cases.jsonl")
        self.rows = self.kept.read()

    def run(self, seconds: float, *, only: Collection[str] = (), say: Callable[[str], None] = print) -> None:
        """Try the columns, or `only` some, in turn until these took `seconds`, those of earlier calls too."""
        chosen = [name for name in self.columns if not only or name in only]
        while (name := self._next(chosen)) and sum(map(self._seconds, chosen)) < seconds:
            row = self._try(name)
            say(
                f"{row['seconds']:6.1f} s  {name}: {row['what']}"
                + "".join(f"\n    BROKEN {one}" for one in row["broken"])
            )
            write_atomically(self.folder / "table.md", self.table())

    def _next(self, chosen: Collection[str]) -> str | None:
        """The column that is furthest behind its share of the time."""
        left = [name for name in chosen if not 0 < self.columns[name].most <= self._count(name)]
        return min(left, key=lambda name: self._seconds(name) / self.columns[name].share, default=None)

    def _try(self, name: str) -> dict[str, Any]:
        """The next case of a column: everything in it is drawn from the seed and its number."""
        number, begun = self._count(name), time.monotonic()
        folder = self.folder / name.replace(" ", "_") / f"case_{number}"
        shutil.rmtree(folder, ignore_errors=True)  # of a case that a kill cut short
        folder.mkdir(parents=True)
        found = self.columns[name].case(random.Random(f"{self.seed}/{name}/{number}"), folder, number)
        if not found.broken:
            shutil.rmtree(folder)
        row = {"column": name, "number": number, "what": found.what, "tried": found.tried}
        row |= {"broken": list(found.broken), "seconds": round(time.monotonic() - begun, 2)}
        self.kept.append([row])
        self.rows.append(row)
        return row

    def _of(self, name: str) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["column"] == name]

    def _count(self, name: str) -> int:
        return len(self._of(name))

    def _seconds(self, name: str) -> float:
        return sum(row["seconds"] for row in self._of(name))

    def table(self) -> str:
        """The table, as Markdown, with the cases that broke below it."""
        lines = [f"| column (seed {self.seed}) | tried | held | broken | minutes |", "|---|---|---|---|---|"]
        for name in self.columns:
            rows = self._of(name)
            tried, broken = sum(row["tried"] for row in rows), sum(len(row["broken"]) for row in rows)
            lines.append(
                f"| {name} | {tried} | {tried - broken} | {broken} | {self._seconds(name) / 60:.1f} |"
            )
        cases = [row for row in self.rows if row["broken"]]
        lines += [
            "",
            *(
                f"- {row['column']} {row['number']}, {row['what']}: {'; '.join(row['broken'])}"
                for row in cases
            ),
        ]
        return "\n".join(lines) + "\n"
