"""Find the measured numbers in a text, and hold them against what the notebooks quoted.

A measured number is a decimal, a percentage, or a number followed by tokens, points, seconds, MB, times or
nats, outside code, formulas, links and headings. In a notebook the cell's metadata says where each comes
from, in order; in Markdown a comment after it does, `31 %<!--03:saving.all-->`. Both may say `given` (no
measurement: a parameter, a definition, arithmetic that the text shows) or `paper: Table 1`.

    python tests/prose.py 03            lists the numbers of a notebook, cell by cell, and what is wrong
    python tests/prose.py --fill 03     writes what was measured into its text and its lecturer's page, and
                                        says what it changed: read those sentences again
    python tests/prose.py --fill README
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import zip_longest
from pathlib import Path
from typing import Any

import nbformat

ROOT = Path(__file__).resolve().parent.parent
NUMBERS = ROOT / "data" / "numbers"
HIDDEN = "\u00a4"  # stands where something was that is no prose, so that its neighbours do not meet

_NO_PROSE = re.compile(
    r"""
    ^(?P<fence>```+|~~~+).*?^(?P=fence)\s*?$    # a fenced block
    | (?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`)    # a code span
    | \$\$.+?\$\$ | (?<!\\)\$[^$]+?\$           # formulas
    | (?<=\])\([^)\s]*\)                        # where a link goes
    | ^\#{1,6}\s.*?$                            # headings
    | ^\*\*Measured\*\*:.*?$                    # the card's line, which stamping writes
    | <[a-zA-Z/!][^<>\n]*>                       # HTML
    | \b\d{4}\.\d{4,5}\b                        # arXiv numbers
    | (?:\bsections?|§)\s*\d+(?:\.\d+)*(?:(?:,|\ and|\ to|\ or)\s+\d+(?:\.\d+)+)*   # sections of papers
    | \b95\s?%\s(?:[\w']+[ ]){0,2}?intervals?\b # the one level that all intervals have
    | \bintervals?\s(?:are|of|at)\s95\s?%
    """,
    re.MULTILINE | re.DOTALL | re.VERBOSE | re.IGNORECASE,
)
_WHOLE = r"(?<![\w.])\d+(?![\w.])"
_NUMBER = r"[+-]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+)?(?:e-?\d+)?"
_NUMBER = rf"(?<![\w.]){_NUMBER}(?<=\d)(?!(?!x\b)\w|\.\d)"  # not within a name or a version
_UNIT = r"(?:%|per\scent|percent|tokens?|(?:percentage\s)?points?|seconds?|MB|times|nats?)(?!\w)"
_BOUNDS = rf"\[\s*{_NUMBER}\s*(?:,|to|\u2013)\s*{_NUMBER}\s*\]"
# A unit or an interval belongs to all of "22 to 28 %", "24 and 31 %", "0.7 ± 0.9 points".
_GROUP = re.compile(
    rf"""
    (?:{_NUMBER}\s*(?:to|±|/|\u2013)\s*|{_WHOLE}\s+(?:and|or)\s+)* {_NUMBER}
    (?:\**\s*(?P<before>{_BOUNDS}))?
    (?:\**[\s-]?(?P<unit>{_UNIT}))?
    (?:\**\s*(?P<after>{_BOUNDS}))?
    """,
    re.VERBOSE,
)


@dataclass(frozen=True)
class Number:
    """A number as the text shows it, with its unit if it has one; positions are those in the text."""

    text: str
    unit: str
    start: int
    end: int

    @property
    def share(self) -> bool:
        """Whether it is in per cent or in points; what is quoted is then a share of 1."""
        return self.unit.startswith(("%", "per", "point"))

    @property
    def value(self) -> Decimal:
        return Decimal(self.text.replace(",", ""))

    def is_rounded(self, kept: float) -> bool:
        """Whether `kept` rounds to what is shown, at the digits that are shown."""
        last = Decimal(1).scaleb(int(self.value.as_tuple().exponent))  # what one of the last digit is worth
        exact = Decimal(repr(kept)) * (100 if self.share else 1)
        return abs(exact - self.value) <= last / 2

    def rounded(self, kept: float) -> str:
        """`kept` written as this number is: as many digits, with or without a zero before the point."""
        digits = max(0, -int(self.value.as_tuple().exponent))
        text = f"{kept * (100 if self.share else 1):,.{digits}f}"
        text = text if "," in self.text or abs(self.value) < 1000 else text.replace(",", "")
        text = text.replace("0.", ".", 1) if re.match(r"[+-]?\.", self.text) else text
        return f"+{text}" if self.text.startswith("+") and kept > 0 else text

    def __str__(self) -> str:
        return f"{self.text} {self.unit}".strip()


def numbers_in(text: str) -> list[Number]:
    """The measured numbers of a text, in order."""
    prose = _NO_PROSE.sub(lambda found: HIDDEN * len(found[0]), text.replace("\u2212", "-"))
    return [number for group in _GROUP.finditer(prose) for number in _measured(group)]


def _measured(group: re.Match[str]) -> Iterator[Number]:
    unit, bounded = group["unit"] or "", bool(group["before"] or group["after"])
    for found in re.finditer(_NUMBER, group[0]):
        if unit or bounded or "." in found[0]:
            start = group.start() + found.start()
            yield Number(found[0], unit, start, start + len(found[0]))


# ---- held against what was quoted ------------------------------------------------------------------


def quoted(notebook: str, folder: Path = NUMBERS) -> dict[str, Any]:
    """What the last stamped run of a notebook quoted; the notebook by its number."""
    files = sorted(folder.glob(f"{notebook}_*.json"))
    return json.loads(files[0].read_text()) if files else {}


def look_up(numbers: Mapping[str, Any], key: str) -> float:
    """The number at `a.b.c`; KeyError says what there is instead."""
    here: Any = numbers
    for place, name in enumerate(key.split(".")):
        if not isinstance(here, dict) or name not in here:
            above = ".".join(key.split(".")[:place]) or "the file"
            there = ", ".join(here) or "nothing" if isinstance(here, dict) else "a number and nothing below"
            raise KeyError(f"there is no {key}: {above} has {there}")
        here = here[name]
    if isinstance(here, dict):
        raise KeyError(f"{key} is no number: it has {', '.join(here)}")
    return here


def find(entry: str, own: str, folder: Path = NUMBERS) -> float | None:
    """The number that an entry names, where there is one."""
    other = re.fullmatch(r"(\d\d):(\S+)", entry)
    try:
        return look_up(quoted(other[1], folder), other[2]) if other else look_up(quoted(own, folder), entry)
    except KeyError:
        return None


def fault(number: Number, entry: str, own: str, folder: Path = NUMBERS) -> str | None:
    """What is wrong with one number and where it is said to come from; `own` is the notebook's number."""
    if entry == "given" or re.fullmatch(r"paper: .+", entry):
        return None
    other = re.fullmatch(r"(\d\d):(\S+)", entry)
    notebook, key = (other[1], other[2]) if other else (own, entry)
    if not notebook:
        return f"{number} is said to be {entry!r}; write NN:key, given, or paper: where"
    try:
        kept = look_up(quoted(notebook, folder), key)
    except KeyError as error:
        return f"{number} is said to be {entry!r}, but in data/numbers/{notebook}_*.json {error.args[0]}"
    times = f", times 100 {100 * kept:.6g}" if number.share else ""
    return None if number.is_rounded(kept) else f"the text says {number}, but {entry} is {kept}{times}"


def faults(text: str, entries: Sequence[str], own: str, folder: Path = NUMBERS) -> list[str]:
    """All that is wrong with the numbers of one cell, in words."""
    numbers = numbers_in(text)
    if len(numbers) != len(entries):
        pairs = zip_longest(map(str, numbers), entries, fillvalue="NOTHING")
        listed = "; ".join(f"{number} <- {entry}" for number, entry in pairs)
        return [f"{len(numbers)} numbers in the text, {len(entries)} in metadata['numbers']: {listed}"]
    told = [fault(number, entry, own, folder) for number, entry in zip(numbers, entries, strict=True)]
    return [what for what in told if what]


def notebook_faults(notebook: nbformat.NotebookNode, own: str, folder: Path = NUMBERS) -> list[str]:
    """The same for every markdown cell of a notebook, with the cell's id."""
    return [
        f"cell {cell.id}: {what}"
        for cell in notebook.cells
        if cell.cell_type == "markdown"
        for what in faults(cell.source, cell.metadata.get("numbers", []), own, folder)
    ]


def page_faults(text: str, folder: Path = NUMBERS) -> list[str]:
    """The same for a page, where a comment follows each number; a key there names its notebook, `03:key`."""
    prose, marks = split_marks(text)
    told, numbers = [], numbers_in(prose)
    for number, mine in marked(numbers, marks):
        where = f"line {prose[: number.start].count(chr(10)) + 1}"
        if len(mine) != 1:
            told.append(f"{where}: {number} needs one comment that says where it comes from, has {mine}")
        elif what := fault(number, mine[0], "", folder):
            told.append(f"{where}: {what}")
    first = numbers[0].end if numbers else len(prose) + 1
    return told + [f"no number stands before the comment {mark!r}" for at, mark in marks if at < first]


def split_marks(text: str) -> tuple[str, list[tuple[int, str]]]:
    """A page without its comments, and the comments with their places in what is left."""
    prose, marks = "", []
    for part in re.split(r"(<!--.*?-->)", text, flags=re.DOTALL):
        if part.startswith("<!--"):
            marks.append((len(prose), part[4:-3].strip()))
        else:
            prose += part
    return prose, marks


def marked(numbers: Sequence[Number], marks: Sequence[tuple[int, str]]) -> Iterator[tuple[Number, list[str]]]:
    """Each number with the comments between it and the next one."""
    ends = [*[number.start for number in numbers[1:]], sys.maxsize]
    for number, end in zip(numbers, ends, strict=False):  # no number, no end
        yield number, [mark for at, mark in marks if number.end <= at < end]


# ---- written into the text -------------------------------------------------------------------------


def filled(text: str, entries: Sequence[str], own: str, folder: Path = NUMBERS) -> tuple[str, list[str]]:
    """The text with each number that differs from what was measured replaced, and what was changed."""
    changed = []
    for number, entry in reversed(list(zip(numbers_in(text), entries, strict=False))):
        if fault(number, entry, own, folder) and (kept := find(entry, own, folder)) is not None:
            new = number.rounded(kept)
            changed.append(f"{number} -> {new} ({entry})")
            text = text[: number.start] + new + text[number.end :]
    return text, changed[::-1]


def filled_page(text: str, folder: Path = NUMBERS) -> tuple[str, list[str]]:
    """The same for a page with comments."""
    prose, marks = split_marks(text)
    numbers = numbers_in(prose)
    entries = [mine[0] if mine else "given" for _, mine in marked(numbers, marks)]
    new, changed = filled(prose, entries, "", folder)
    grown = [
        (old.end, len(now.text) - len(old.text)) for old, now in zip(numbers, numbers_in(new), strict=True)
    ]
    for at, mark in reversed(marks):
        place = at + sum(more for end, more in grown if end <= at)
        new = f"{new[:place]}<!--{mark}-->{new[place:]}"
    return new, changed


def fill(word: str) -> list[str]:
    """Fill a notebook and its lecturer's page, or the README; what was changed."""
    told = []
    for path in sorted((ROOT / "notebooks").glob(f"{word}_*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source, changed = filled(cell.source, cell.metadata.get("numbers", []), word)
                told += [f"cell {cell.id}: {what}" for what in changed]
        path.write_text(nbformat.writes(notebook) + "\n")
    pages = (ROOT / "notebooks" / "lecturer").glob(f"{word}_*.md")
    for path in (ROOT / "README.md",) if word == "README" else sorted(pages):
        text, changed = filled_page(path.read_text())
        path.write_text(text)
        told += [f"{path.name}: {what}" for what in changed]
    return told


def listing(path: Path) -> str:
    """The numbers of a notebook cell by cell, each with what its cell says it is, and what is wrong."""
    notebook, lines = nbformat.read(path, as_version=4), []
    for cell in notebook.cells:
        entries = cell.metadata.get("numbers", [])
        numbers = numbers_in(cell.source) if cell.cell_type == "markdown" else []
        lines += [f"{cell.id}"] if numbers or entries else []
        for number, entry in zip_longest(numbers, entries):
            around = cell.source[max(0, number.start - 40) : number.end + 25] if number else ""
            lines.append(f"    {number!s:<14} <- {entry!s:<30} ...{' '.join(around.split())}...")
    return "\n".join([*lines, "", *(notebook_faults(notebook, path.stem[:2]) or ["nothing is wrong"])])


if __name__ == "__main__":
    for word in [word for word in sys.argv[1:] if word != "--fill"]:
        if "--fill" in sys.argv:
            print("\n".join(fill(word)) or f"{word}: nothing to change")
        else:
            print(listing(next((ROOT / "notebooks").glob(f"{word}_*.ipynb"))))
