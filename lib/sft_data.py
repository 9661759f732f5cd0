"""The SFT set of ARM (section 4.1, appendix B): one question in four formats, every response checked.

A wrong answer is dropped, and so is code that does not run to the values it claims. All that is
dropped is counted, with its reason, in the card of the set.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import math
import random
import shutil
import tokenize
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from lib.data import Example
from lib.dial import Question, gold_response, sample_questions
from lib.formats import ReasoningFormat, parse_response
from lib.runs import sha256, write_atomically, write_json
from lib.sandbox import run_python, split_simulated_output
from lib.teachers import Teacher, dial_example
from lib.verify import is_correct

CODE_SECONDS = 5.0
CODE_MEGABYTES = 256
SHOWN_DROPS = 3  # examples of each reason in the card


# ---- checks ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drop:
    """A question or response left out: the reason is counted, the detail is for a reader."""

    reason: str
    detail: str
    id: str
    format: str = ""


def check_response(example: Example, format: ReasoningFormat, text: str) -> tuple[str, str] | None:
    """Why a response must not be taught, as (reason, detail), or None where it may."""
    parsed = parse_response(text)
    if not parsed.is_valid:
        return "not a valid response", parsed.problem
    if parsed.format is not format:
        return "another format", f"{parsed.format} instead of {format}"
    if not is_correct(parsed.answer, example.answer, example.kind):
        return "wrong answer", f"{parsed.answer} instead of {example.answer}"
    if format is ReasoningFormat.CODE:
        return check_program(
            parsed.rationale, lambda answer: is_correct(answer, example.answer, example.kind)
        )
    return None


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
    # A list of cups is claimed as the word that it spells.
    note = "def _note(n, v): _seen[f'line {n}'] = ''.join(v) if isinstance(v, list) else str(v)"
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


# ---- the set -----------------------------------------------------------------------------------


def stage(key: str, sft_share: float) -> str:
    """Whether a question serves "sft" or "rl", for ever: a hash of its key (`Example.key`).

    With the same questions in both stages the model recited answers in RL (ARM, footnote 4).
    """
    draw = int.from_bytes(hashlib.sha256(f"stage|{key}".encode()).digest()[:8]) / 2**64
    return "sft" if draw < sft_share else "rl"


@dataclass(frozen=True)
class SFTSet:
    """The rows to train on, what was dropped, and the card that counts both."""

    rows: list[dict[str, str]]
    drops: list[Drop]
    card: dict[str, Any]

    def save(self, folder: str | Path) -> None:
        """Write sft.jsonl, dataset/ (for datasets.load_from_disk), card.json and README.md."""
        folder = Path(folder)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)
        write_atomically(folder / "sft.jsonl", lines)
        fresh = folder / "dataset.new"
        shutil.rmtree(fresh, ignore_errors=True)
        Dataset.from_list(self.rows).save_to_disk(fresh)
        shutil.rmtree(folder / "dataset", ignore_errors=True)
        fresh.rename(folder / "dataset")
        write_json(folder / "card.json", self.card | {"sha256": sha256(folder / "sft.jsonl")})
        write_atomically(folder / "README.md", card_markdown(self.card))


def build_sft_set(
    examples: Iterable[Example],
    teachers: Mapping[ReasoningFormat, Teacher],
    *,
    seed: int = 0,
    sft_share: float = 1.0,
    exclude: Iterable[Example] = (),
    balance: bool = True,
) -> SFTSet:
    """Ask a teacher for every question in every format, check each response, and balance what is left.

    Only training questions are used, each once, and none that `exclude` holds or that `stage` keeps for
    RL. Balanced means as many responses in each cell of tier and format, as far as possible by the same
    questions in all formats.
    """
    given = list(examples)
    chosen, drops = _choose(given, {example.key for example in exclude}, sft_share)
    formats = [ReasoningFormat(format) for format in teachers]
    kept: dict[tuple[str, ReasoningFormat], dict[str, str]] = {}  # (key, format): row
    for teacher in dict.fromkeys(teachers.values()):  # one call a teacher: one estimate, one queue
        tasks = [(e, f) for e in chosen for f in formats if teachers[f] is teacher]
        for (example, format), reply in zip(tasks, teacher(tasks), strict=True):
            if reply.text is None:
                problem = ("no response", reply.problem)
            else:
                problem = check_response(example, format, reply.text)
            if problem:
                drops.append(Drop(*problem, example.id, str(format)))
            else:
                kept[example.key, format] = _row(example, format, reply.text)
    rng = random.Random(f"sft|{seed}")
    if balance:
        surplus = _surplus(chosen, formats, kept, rng)
        drops += [Drop("left out for balance", "", kept[cell]["id"], str(cell[1])) for cell in surplus]
        kept = {cell: row for cell, row in kept.items() if cell not in surplus}
    rows = list(kept.values())
    rng.shuffle(rows)
    settings = {"seed": seed, "sft_share": sft_share, "balance": balance}
    return SFTSet(rows, drops, _card(settings, given, chosen, formats, rows, drops))


def dial_rows(questions: Iterable[Question], *, seed: int, sft_share: float = 1.0) -> list[dict[str, str]]:
    """The gold responses of dial questions in all formats, shuffled: exact, so they need no check.

    Questions that `stage` keeps for RL are left out.
    """
    rows = []
    for question in questions:
        example = dial_example(question)
        if stage(example.key, sft_share) == "sft":
            rows += [_row(example, format, gold_response(question, format)) for format in ReasoningFormat]
    random.Random(f"sft|{seed}").shuffle(rows)
    return rows


def rl_questions(
    count: int, *, seed: int, sft_share: float, depths: Sequence[int] | None = None
) -> list[Question]:
    """Dial questions for RL, balanced over tiers or taken from `depths`: none that `stage` gives to SFT."""
    drawn = sample_questions(math.ceil(2 * count / (1 - sft_share)), seed=seed, depths=depths)
    wanted = [q for q in drawn if stage(dial_example(q).key, sft_share) == "rl"]
    tiers = [[q for q in wanted if q.tier == tier] for tier in dict.fromkeys(q.tier for q in wanted)]
    return [question for row in zip(*tiers, strict=False) for question in row][:count]


def _choose(
    examples: Sequence[Example], excluded: set[str], sft_share: float
) -> tuple[list[Example], list[Drop]]:
    """The questions to ask, and why the others are not asked."""
    answers: dict[str, set[str]] = {}
    for example in examples:
        answers.setdefault(example.key, set()).add(example.answer)
    chosen, drops, seen = [], [], set()
    for example in examples:
        if example.split != "train":
            reason = "not a training question"
        elif example.key in excluded:
            reason = "in a set to keep apart"
        elif stage(example.key, sft_share) == "rl":
            reason = "kept for RL"
        elif len(answers[example.key]) > 1:
            reason = "duplicates contradict each other"
        elif example.key in seen:
            reason = "duplicate question"
        else:
            seen.add(example.key)
            chosen.append(example)
            continue
        drops.append(Drop(reason, example.question[:100], example.id))
    return chosen, drops


def _row(example: Example, format: ReasoningFormat, text: str) -> dict[str, str]:
    return {
        "prompt": example.prompt,
        "completion": text,
        "format": str(format),
        "tier": example.tier,
        "source": example.source,
        "id": example.id,
        "answer": example.answer,
    }


def _surplus(
    chosen: Sequence[Example],
    formats: Sequence[ReasoningFormat],
    kept: Mapping[tuple[str, ReasoningFormat], Any],
    rng: random.Random,
) -> dict[tuple[str, ReasoningFormat], None]:
    """What is beyond the smallest cell; questions that are right in many formats stay first."""
    order = list(chosen)
    rng.shuffle(order)
    order.sort(key=lambda example: -sum((example.key, format) in kept for format in formats))
    tiers = {example.tier for example in chosen}
    cells = {
        (tier, format): [(e.key, format) for e in order if e.tier == tier and (e.key, format) in kept]
        for tier in sorted(tiers)
        for format in formats
    }
    if empty := [f"{tier}/{format}" for (tier, format), cell in cells.items() if not cell]:
        raise ValueError(
            f"no response passed in {', '.join(empty)}: nothing would be left after balancing. Give more "
            "questions or another teacher, leave the format out, or build with balance=False"
        )
    size = min(map(len, cells.values()), default=0)
    # A set would come in another order in every process, and the card with it.
    return dict.fromkeys(row for cell in cells.values() for row in cell[size:])


# ---- the card ----------------------------------------------------------------------------------


def _card(
    settings: Mapping[str, Any],
    given: Sequence[Example],
    chosen: Sequence[Example],
    formats: Sequence[ReasoningFormat],
    rows: Sequence[Mapping[str, str]],
    drops: Sequence[Drop],
) -> dict[str, Any]:
    """Counts of what was given, asked, kept and dropped; nothing in it depends on the day."""
    counts = Counter((row["tier"], row["format"]) for row in rows)
    tiers = sorted({example.tier for example in chosen}, key=["easy", "medium", "hard"].index)
    reasons: dict[str, dict[str, int]] = {}
    shown: dict[str, list[str]] = {}
    for drop in drops:
        by_format = reasons.setdefault(drop.reason, {})
        by_format[drop.format or "question"] = by_format.get(drop.format or "question", 0) + 1
        if len(shown.setdefault(drop.reason, [])) < SHOWN_DROPS:
            shown[drop.reason].append(f"{drop.id}: {drop.detail}")
    return {
        **settings,
        "questions_given": len(given),
        "questions_asked": len(chosen),
        "responses_asked": len(chosen) * len(formats),
        "rows": len(rows),
        "counts": {tier: {str(format): counts[tier, str(format)] for format in formats} for tier in tiers},
        "sources": dict(sorted(Counter(row["source"] for row in rows).items())),
        "dropped": reasons,
        "drop_examples": shown,
    }


def card_markdown(card: Mapping[str, Any]) -> str:
    """The card as a page to read."""
    formats = list(next(iter(card["counts"].values()), {}))
    dropped = [
        (reason, *(str(count.get(column, 0)) for column in ("question", *formats)))
        for reason, count in card["dropped"].items()
    ]
    kept = [(tier, *map(str, count.values())) for tier, count in card["counts"].items()]
    return "\n".join(
        [
            "# SFT set",
            "",
            f"{card['rows']} responses to {card['questions_asked']} questions, of {card['questions_given']} "
            f"given. Seed {card['seed']}, share of questions for SFT {card['sft_share']}, "
            f"{'balanced' if card['balance'] else 'not balanced'}.",
            "",
            "Sources: " + (", ".join(f"{k} ({v})" for k, v in card["sources"].items()) or "none") + ".",
            "",
            "## Kept",
            "",
            *_table(("tier", *formats), kept),
            "",
            "## Dropped",
            "",
            *_table(("reason", "questions", *formats), dropped),
            "",
            *(
                f"- {reason}: {example}"
                for reason, examples in card["drop_examples"].items()
                for example in examples
            ),
            "",
        ]
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]
