"""The dial world: questions whose difficulty, answer and cheapest right response are known exactly.

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

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lib.formats import ReasoningFormat, render_response

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
PROMPT = "Human: {question}\nAssistant:"
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
        return PROMPT.format(question=self.text)

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


# ---- gold responses ----------------------------------------------------------------------------


def jotted(question: Question) -> tuple[str, ...]:
    """What short CoT writes down: the states after operations 2 and 4, or after the only one."""
    places = [place for place in JOTTED_AFTER if place <= question.depth] or [1]
    return tuple(question.values[place - 1] for place in places)


def statement_sizes(depth: int) -> list[int]:
    """Operations per statement of the program: two each, and more where four statements are too few."""
    count = min(MAX_STATEMENTS, -(-depth // FUSED_OPERATIONS))
    if depth <= FUSED_OPERATIONS * MAX_STATEMENTS:
        return [FUSED_OPERATIONS] * (count - 1) + [depth - FUSED_OPERATIONS * (count - 1)]
    return [depth // count + (index < depth % count) for index in range(count)]


def program(question: Question) -> str:
    """Runnable Python that computes `answer`; each comment is the state at that line."""
    world, done = WORLDS[question.world], 0
    lines = [world.code_start.format(start=question.start)]
    for size in statement_sizes(question.depth):
        statements = [world.code[op] for op in question.operations[done : done + size]]
        done += size
        lines.append(" ".join([*statements, world.code_value.format(value=question.values[done - 1])]))
    return "\n".join([*lines, world.code_end])


def monologue(question: Question) -> str:
    """Long CoT: restate the question, work every operation, look at every value again."""
    world = WORLDS[question.world]
    operations = " ".join(question.operations)
    before = (question.start, *question.values)
    steps = [
        f"{a} {op} = {b}" for a, op, b in zip(before, question.operations, question.values, strict=False)
    ]
    return "\n".join(
        [
            f"Okay, let me think. {world.restatement.format(start=question.start, operations=operations)}",
            *steps,
            f"Wait, let me check: {' '.join(question.values)}. Yes, that is right.",
        ]
    )


def rationale(question: Question, format: ReasoningFormat) -> str:
    """The gold reasoning of a question in one format; empty for direct."""
    match ReasoningFormat(format):
        case ReasoningFormat.DIRECT:
            return ""
        case ReasoningFormat.SHORT_COT:
            return "Jot " + f" {PAUSES[JOTTED_AFTER[0]]} ".join(jotted(question))
        case ReasoningFormat.CODE:
            return program(question)
        case ReasoningFormat.LONG_COT:
            return monologue(question)


def gold_response(question: Question, format: ReasoningFormat) -> str:
    """The tagged response that SFT teaches."""
    return render_response(format, rationale(question, format), question.answer)


def untagged_response(question: Question, format: ReasoningFormat) -> str:
    """The same reasoning as the base model's corpus writes it: no tags, and the answer in a sentence."""
    conclusion = WORLDS[question.world].conclusion.format(answer=question.answer)
    return "\n".join(filter(None, [rationale(question, format), conclusion]))


# How an untagged response in each style begins: the text to force, to see what the base can do.
UNTAGGED_PREFIX: dict[ReasoningFormat, str] = {
    ReasoningFormat.DIRECT: "It shows",
    ReasoningFormat.SHORT_COT: "Jot",
    ReasoningFormat.CODE: "d =",
    ReasoningFormat.LONG_COT: "Okay,",
}


def untagged_answer(text: str) -> str | None:
    """The digit in the closing sentence of an untagged response, or None."""
    match = re.search(r"It shows (\d)\.\s*$", text)
    return match[1] if match else None


# ---- what is optimal ---------------------------------------------------------------------------


def reach(format: ReasoningFormat) -> int:
    """The deepest question a format gets right: 2 * (written digits + 1); long CoT as far as trained."""
    written = {
        ReasoningFormat.DIRECT: 0,
        ReasoningFormat.SHORT_COT: len(JOTTED_AFTER),
        ReasoningFormat.CODE: MAX_STATEMENTS - 1,  # the last comment is the answer itself
        ReasoningFormat.LONG_COT: MAX_DEPTH,
    }[ReasoningFormat(format)]
    return min(MAX_DEPTH, FUSED_OPERATIONS * (written + 1))


def token_cost(format: ReasoningFormat, depth: int) -> int:
    """Tokens of the gold response with its tags and the end token, in closed form (dial tokenizer)."""
    _check_depth(depth)
    match ReasoningFormat(format):
        case ReasoningFormat.DIRECT:
            return 4
        case ReasoningFormat.SHORT_COT:
            return 8 if depth < JOTTED_AFTER[1] else 10
        case ReasoningFormat.CODE:
            return 10 + depth + 3 * len(statement_sizes(depth))
        case ReasoningFormat.LONG_COT:
            return 33 + 7 * depth


def oracle_format(depth: int) -> ReasoningFormat | None:
    """The cheapest format that is right at this depth; None beyond the reach of all."""
    right = [format for format in ReasoningFormat if depth <= reach(format)]
    return min(right, key=lambda format: token_cost(format, depth), default=None)


# ---- tokenizer ---------------------------------------------------------------------------------

PAD, END, UNKNOWN = "<pad>", "<end>", "<unk>"


def dial_vocabulary() -> list[str]:
    """Every token of the dial world. Tags and program fragments are one token each."""
    world = WORLDS["dial"]
    tags = [format.tag for format in ReasoningFormat]
    words = (
        "Human Assistant The dial shows Turn it Now It Jot and turns Okay let me think Wait check Yes "
        "that is right Say"
    )
    return [
        *(PAD, END, UNKNOWN, "\n", ".", ",", ":", "?", "="),
        *(str(number) for number in range(13)),
        *world.operations,
        *world.code.values(),
        *("d =", "d %= 10  #", "answer = d"),
        *(f"<{tag}>\n" for tag in tags),
        *(f"\n</{tag}>\n" for tag in tags if tag != "ANSWER"),
        *("\n</ANSWER>", "<think>", "</think>"),
        *words.split(),
        *PAUSES.values(),
        *COLOURS,
    ]


def dial_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer whose decoding gives back the text exactly, line breaks included."""
    vocabulary = dial_vocabulary()
    words = sorted((word for word in vocabulary if word not in (PAD, UNKNOWN)), key=len, reverse=True)
    boundary = r"(?=[\s.,:?<]|$)"
    known = "|".join(re.escape(w) if w in "\n.,:?" or w[0] == "<" else re.escape(w) + boundary for w in words)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(rf"{known}|[^\s.,:?]+"), behavior="removed", invert=True
    )
    joins = [(f" {mark}", mark) for mark in (".", ",", ":", "?", "\n")] + [("\n ", "\n")]
    tokenizer.decoder = decoders.Sequence(
        [decoders.WordPiece(prefix="##", cleanup=False), decoders.Fuse()]
        + [decoders.Replace(old, new) for old, new in joins]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
