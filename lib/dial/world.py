"""The dial world: questions whose difficulty and answer are known exactly.

A dial shows a digit and is turned by a chain of operations, all modulo 10. The number of operations
is the depth of the question. A model that can fuse two operations in one pass, and that writes b
intermediate digits, is right up to depth 2 * (b + 1): that is the whole world in one sentence.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from lib.tasks import FRAME

TIERS: dict[str, range] = {"easy": range(1, 3), "medium": range(3, 7), "hard": range(7, 13)}
MAX_DEPTH = 12
FUSED_OPERATIONS = 2
JOTTED_AFTER = (2, 4)
# The sentence of a question pauses where one would jot, and the jots are joined by the same word. One run
# each: without both, short CoT stayed at depth 3 for 4,800 steps; with pauses in the question alone, for
# 2,500; with both it reached depth 6 by 1,200. Why was not examined.
PAUSES = dict(zip(JOTTED_AFTER, ("then", "later"), strict=True))
MAX_STATEMENTS = 4
COLOURS = ("red", "blue", "green", "black", "white", "grey", "gold", "pink", "brown", "silver")
SPLITS = {"train": 0.7, "validation": 0.1, "test": 0.2}


# ---- turns and words ---------------------------------------------------------------------------

_ADDITIONS = tuple(f"+{k}" for k in range(1, 10))
OPERATIONS = (*_ADDITIONS, "x3", "x7", "x9")
WORLDS = {"dial": OPERATIONS, "additions": _ADDITIONS}  # additions alone may be done in any order: a control
DIGITS = tuple("0123456789")
QUESTION = "The {colour} dial shows {start}. Turn it {operations}. Now?"


def _turn(operation: str, digit: str) -> str:
    number = int(operation[1])
    return str((int(digit) + number if operation[0] == "+" else int(digit) * number) % 10)


# TURNS[operation][digit] is the next digit; STATEMENTS[operation] is the operation in Python.
TURNS = {operation: {digit: _turn(operation, digit) for digit in DIGITS} for operation in OPERATIONS}
STATEMENTS = {op: f"d {'+' if op[0] == '+' else '*'}= {op[1]};" for op in OPERATIONS}


# ---- questions ---------------------------------------------------------------------------------


def tier(depth: int) -> str:
    """Easy (depth 1-2), medium (3-6) or hard (7 and deeper)."""
    _check_depth(depth)
    return next((name for name, depths in TIERS.items() if depth in depths), "hard")


@dataclass(frozen=True)
class Question:
    """A start digit and a chain of operations. The colour only makes the text more varied."""

    start: str
    operations: tuple[str, ...]
    colour: str = "red"
    world: str = "dial"

    def __post_init__(self) -> None:
        if self.world not in WORLDS:
            raise ValueError(f"unknown world {self.world!r}; there are {', '.join(WORLDS)}")
        _check_depth(len(self.operations))
        if self.start not in DIGITS:
            raise ValueError(f"unknown start {self.start!r}; use a digit")
        for operation in self.operations:
            if operation not in WORLDS[self.world]:
                use = ", ".join(WORLDS[self.world])
                raise ValueError(f"unknown operation {operation!r} in the {self.world} world; use {use}")
        if self.colour not in COLOURS:
            raise ValueError(f"unknown colour {self.colour!r}; use {', '.join(COLOURS)}")

    @property
    def depth(self) -> int:
        return len(self.operations)

    @property
    def tier(self) -> str:
        return tier(self.depth)

    @property
    def text(self) -> str:
        words = []
        for place, operation in enumerate(self.operations):
            words += [PAUSES[place], operation] if place in PAUSES else [operation]
        return QUESTION.format(colour=self.colour, start=self.start, operations=" ".join(words))

    @property
    def prompt(self) -> str:
        """The question in ARM's frame; a response follows."""
        return FRAME.format(question=self.text)

    @cached_property
    def values(self) -> tuple[str, ...]:
        """The digit after each operation."""
        digit, digits = self.start, []
        for operation in self.operations:
            digit = TURNS[operation][digit]
            digits.append(digit)
        return tuple(digits)

    @property
    def answer(self) -> str:
        return self.values[-1]

    @property
    def key(self) -> str:
        """The same for questions that differ in colour alone."""
        return f"{self.world}|{self.start}|{' '.join(self.operations)}"

    @cached_property
    def split(self) -> str:
        """The split this question belongs to, for ever: a hash of start and operations, colour left out."""
        draw = int.from_bytes(hashlib.sha256(self.key.encode()).digest()[:8]) / 2**64
        for name, share in SPLITS.items():
            draw -= share
            if draw < 0:
                return name
        return name


def parse_question(text: str) -> Question:
    """Read a question written as `Question.text` writes it; the error says what is not understood."""
    fields = {name: rf"(?P<{name}>\S+)" for name in ("colour", "start")} | {
        "operations": "(?P<operations>.*?)"
    }
    pattern = re.escape(QUESTION).replace(r"\{", "{").replace(r"\}", "}").format(**fields)
    if not (match := re.fullmatch(pattern, text.strip())):
        raise ValueError(f"not a question about a dial: {text!r}; write {QUESTION!r}")
    operations = tuple(word for word in match["operations"].split() if word not in PAUSES.values())
    return Question(match["start"], operations, match["colour"])


def sample_questions(
    count: int,
    *,
    seed: int,
    split: str = "train",
    depths: Iterable[int] | None = None,
    world: str = "dial",
    distinct: bool = False,
) -> list[Question]:
    """Draw questions of one split. Depths are taken from `depths` in turn, or balanced over the tiers.

    `distinct` draws without repetition; an error says so where a depth does not hold enough questions.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    rng = random.Random(f"{seed}|{split}|{world}")
    wanted = list(depths) if depths is not None else None
    questions: list[Question] = []
    seen: set[Question] = set()
    misses = 0
    while len(questions) < count:
        index = len(questions)
        if wanted is not None:
            depth = wanted[index % len(wanted)]
        else:
            depth = rng.choice(list(TIERS.values())[index % len(TIERS)])
        _check_depth(depth)
        start = rng.choice(DIGITS)
        operations = tuple(rng.choices(WORLDS[world], k=depth))
        question = Question(start, operations, rng.choice(COLOURS), world)
        if question.split != split or (distinct and question in seen):
            misses += 1
            if misses > 10_000:
                raise ValueError(
                    f"depth {depth} of the {world} world holds no {index + 1} distinct {split} questions; "
                    "ask for fewer, or for distinct=False"
                )
            continue
        misses = 0
        seen.add(question)
        questions.append(question)
    return questions


def _check_depth(depth: int) -> None:
    if depth < 1:
        raise ValueError(f"depth must be 1 or more, got {depth}: a question needs an operation")
