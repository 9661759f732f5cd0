"""The dial world: questions whose difficulty and answer are known exactly.

A dial shows a digit and is turned by a chain of operations, all modulo 10. The number of operations
is the depth of the question. A model that can fuse two operations in one pass, and that writes b
intermediate digits, is right up to depth 2 * (b + 1): that is the whole world in one sentence.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import permutations

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


# ---- worlds ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """A set of states and named operations on them, with the words to talk about it.

    `table[operation][state]` is the next state. `code[operation]` is the operation in Python.
    """

    name: str
    table: Mapping[str, Mapping[str, str]] = field(repr=False)
    code: Mapping[str, str] = field(repr=False)
    question: str = field(repr=False)
    restatement: str = field(repr=False)
    conclusion: str = field(repr=False)
    code_start: str = field(repr=False)
    code_value: str = field(repr=False)
    code_end: str = field(repr=False)

    @cached_property
    def operations(self) -> tuple[str, ...]:
        return tuple(self.table)

    @cached_property
    def states(self) -> tuple[str, ...]:
        return tuple(next(iter(self.table.values())))


def _dial(name: str, operations: Sequence[str]) -> World:
    """Turns of a dial: `+4` adds 4, `x7` multiplies by 7, both modulo 10."""

    def turn(operation: str, digit: int) -> str:
        number = int(operation[1])
        return str((digit + number if operation[0] == "+" else digit * number) % 10)

    return World(
        name=name,
        table={op: {str(digit): turn(op, digit) for digit in range(10)} for op in operations},
        code={op: f"d {'+' if op[0] == '+' else '*'}= {op[1]};" for op in operations},
        question="The {colour} dial shows {start}. Turn it {operations}. Now?",
        restatement="The dial shows {start} and turns {operations}.",
        conclusion="It shows {answer}.",
        code_start="d = {start}",
        code_value="d %= 10  # {value}",
        code_end="answer = d",
    )


def _cups() -> World:
    """Swaps of five cups: `1-3` exchanges the cups at places 1 and 3."""
    arrangements = ["".join(letters) for letters in permutations("ABCDE")]
    swaps = [(i, j) for i in range(5) for j in range(i + 1, 5)]

    def swap(cups: str, i: int, j: int) -> str:
        letters = list(cups)
        letters[i], letters[j] = letters[j], letters[i]
        return "".join(letters)

    return World(
        name="cups",
        table={f"{i + 1}-{j + 1}": {cups: swap(cups, i, j) for cups in arrangements} for i, j in swaps},
        code={f"{i + 1}-{j + 1}": f"c[{i}], c[{j}] = c[{j}], c[{i}];" for i, j in swaps},
        question="The {colour} cups stand {start}. Swap them {operations}. Now?",
        restatement="The cups stand {start} and swap {operations}.",
        conclusion="They stand {answer}.",
        code_start='c = list("{start}")',
        code_value="# {value}",
        code_end='answer = "".join(c)',
    )


_ADDITIONS = tuple(f"+{k}" for k in range(1, 10))
WORLDS: dict[str, World] = {
    world.name: world
    for world in (
        _dial("dial", (*_ADDITIONS, "x3", "x7", "x9")),
        _dial("additions", _ADDITIONS),  # the order of additions does not matter: the control
        _cups(),  # the group S5: the world for which there is a theorem
    )
}


# ---- questions ---------------------------------------------------------------------------------


def tier(depth: int) -> str:
    """Easy (depth 1-2), medium (3-6) or hard (7 and deeper)."""
    _check_depth(depth)
    return next((name for name, depths in TIERS.items() if depth in depths), "hard")


@dataclass(frozen=True)
class Question:
    """A start state and a chain of operations. The colour only makes the text more varied."""

    start: str
    operations: tuple[str, ...]
    colour: str = "red"
    world: str = "dial"

    def __post_init__(self) -> None:
        if self.world not in WORLDS:
            raise ValueError(f"unknown world {self.world!r}; there are {', '.join(WORLDS)}")
        world = WORLDS[self.world]
        _check_depth(len(self.operations))
        if self.start not in world.states:
            raise ValueError(
                f"unknown start {self.start!r} in the {self.world} world, expected one like {world.states[0]}"
            )
        for operation in self.operations:
            if operation not in world.table:
                raise ValueError(
                    f"unknown operation {operation!r} in the {self.world} world; "
                    f"use {', '.join(world.operations)}"
                )
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
        return WORLDS[self.world].question.format(
            colour=self.colour, start=self.start, operations=" ".join(words)
        )

    @property
    def prompt(self) -> str:
        """The question in ARM's frame; a response follows."""
        return FRAME.format(question=self.text)

    @cached_property
    def values(self) -> tuple[str, ...]:
        """The state after each operation."""
        table, state, states = WORLDS[self.world].table, self.start, []
        for operation in self.operations:
            state = table[operation][state]
            states.append(state)
        return tuple(states)

    @property
    def answer(self) -> str:
        return self.values[-1]

    @cached_property
    def split(self) -> str:
        """The split this question belongs to, for ever: a hash of start and operations, colour left out."""
        key = f"{self.world}|{self.start}|{' '.join(self.operations)}"
        draw = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64
        for name, share in SPLITS.items():
            draw -= share
            if draw < 0:
                return name
        return name


def parse_question(text: str) -> Question:
    """Read a question written as `Question.text` writes it; the error says what is not understood."""
    for world in WORLDS.values():
        fields = {
            "colour": r"(?P<colour>\S+)",
            "start": r"(?P<start>\S+)",
            "operations": r"(?P<operations>.*?)",
        }
        pattern = re.escape(world.question).replace(r"\{", "{").replace(r"\}", "}").format(**fields)
        if match := re.fullmatch(pattern, text.strip()):
            operations = tuple(word for word in match["operations"].split() if word not in PAUSES.values())
            return Question(match["start"], operations, match["colour"], world.name)
    examples = " or ".join(repr(w.question) for w in (WORLDS["dial"], WORLDS["cups"]))
    raise ValueError(f"not a question of these worlds: {text!r}; write {examples}")


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
    operations, states = WORLDS[world].operations, WORLDS[world].states
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
        question = Question(
            rng.choice(states), tuple(rng.choices(operations, k=depth)), rng.choice(COLOURS), world
        )
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
