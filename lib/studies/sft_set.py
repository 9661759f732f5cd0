"""Notebook 01: the SFT set of ARM (section 4.1, appendix B), one question in four formats, all checked.

A wrong answer is dropped, and so is code that does not run to the values it claims. All that is
dropped is counted, with its reason, in the card of the set.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from lib.dial.tasks import dial_tasks
from lib.formats import ReasoningFormat, parse_response
from lib.methods.sft_rows import encode, read_rows
from lib.runs import run_folder, sha256, write_atomically, write_json
from lib.studies.programs import check_program
from lib.studies.teachers import Teacher, dial_teacher
from lib.tasks import Task, sft_row, stage
from lib.verify import is_correct

SHOWN_DROPS = 3  # examples of each reason in the card
SAVED = "sft_set/sft.jsonl"  # where notebook 01 keeps its rows, in its run folder


# ---- checks ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drop:
    """A question or response left out: the reason is counted, the detail is for a reader."""

    reason: str
    detail: str
    id: str
    format: str = ""


Check = Callable[[Task, ReasoningFormat, str], tuple[str, str] | None]


def check_form(example: Task, format: ReasoningFormat, text: str) -> tuple[str, str] | None:
    """The first factor of equation (2) alone: a valid response in the format that was asked for."""
    parsed = parse_response(text)
    if not parsed.is_valid:
        return "not a valid response", parsed.problem or ""
    if parsed.format is not format:
        return "another format", f"{parsed.format} instead of {format}"
    return None


def check_response(example: Task, format: ReasoningFormat, text: str) -> tuple[str, str] | None:
    """Equation (2): why a response must not be taught, as (reason, detail), or None where it may."""
    if problem := check_form(example, format, text):
        return problem
    parsed = parse_response(text)
    if not is_correct(parsed.answer, example.answer, example.kind):
        return "wrong answer", f"{parsed.answer} instead of {example.answer}"
    if format is ReasoningFormat.CODE:
        return check_program(
            parsed.rationale, lambda answer: is_correct(answer, example.answer, example.kind)
        )
    return None


# ---- the set -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class SFTSet:
    """The rows to train on, what was dropped, and the card that counts both."""

    rows: list[dict[str, str]]
    drops: list[Drop]
    card: dict[str, Any]

    def save(self, folder: str | Path) -> None:
        """Write sft.jsonl, which notebook 02 reads, dataset/ for `load_from_disk`, card.json, README.md."""
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
    examples: Iterable[Task],
    teachers: Mapping[ReasoningFormat, Teacher],
    *,
    seed: int = 0,
    sft_share: float = 1.0,
    exclude: Iterable[Task] = (),
    balance: bool = True,
    check: Check = check_response,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_length: int = 4096,
) -> SFTSet:
    """Ask a teacher for every question in every format, check each response, and balance what is left.

    Only training questions are used, each once, and none that `exclude` holds or that `stage` keeps for
    RL. A set that holds a question once for each format it is written in (ARM's) keeps all of these.
    With a `tokenizer`, rows of more than `max_length` tokens, which training would leave out, are dropped
    too. Balanced means as many responses in each cell of tier and format, as far as possible by the same
    questions in all formats.
    """
    given = list(examples)
    chosen, written, drops = _choose(given, {example.key for example in exclude}, sft_share)
    formats = [ReasoningFormat(format) for format in teachers]
    kept: dict[tuple[str, ReasoningFormat], dict[str, str]] = {}  # (key, format): row
    for teacher in dict.fromkeys(teachers.values()):  # one call a teacher: one estimate, one queue
        tasks = [(written.get((e.key, f), e), f) for e in chosen for f in formats if teachers[f] is teacher]
        for (example, format), reply in zip(tasks, teacher(tasks), strict=True):
            row = sft_row(example, format, reply.text or "")
            if reply.text is None:
                drops.append(Drop("no response", reply.problem or "", example.id, str(format)))
            elif problem := check(example, format, reply.text):
                drops.append(Drop(*problem, example.id, str(format)))
            elif tokenizer and (tokens := len(encode(row, tokenizer)["input_ids"])) > max_length:
                drops.append(Drop("too long to train on", f"{tokens} tokens", example.id, str(format)))
            else:
                kept[example.key, format] = row
    rng = random.Random(f"sft|{seed}")
    if balance:
        surplus = _surplus(chosen, formats, kept, rng)
        drops += [Drop("left out for balance", "", kept[cell]["id"], str(cell[1])) for cell in surplus]
        kept = {cell: row for cell, row in kept.items() if cell not in surplus}
    rows = list(kept.values())
    rng.shuffle(rows)
    settings = {"seed": seed, "sft_share": sft_share, "balance": balance}
    return SFTSet(rows, drops, _card(settings, given, chosen, formats, rows, drops))


def dial_sft_set(questions: int = 1200, *, seed: int = 0, sft_share: float = 0.7) -> SFTSet:
    """The set of notebooks 01 and 02: exact responses, balanced. They need no sandbox: 01 checks them all."""
    given = dial_tasks(questions, split="train", seed=seed)
    exact = dict.fromkeys(ReasoningFormat, dial_teacher)
    return build_sft_set(given, exact, seed=seed, sft_share=sft_share, check=check_form)


def thread_rows(profile: str, **dial: Any) -> tuple[list[dict[str, Any]], str]:
    """Notebook 01's rows and where they are from: its run folder, or else `dial_sft_set`, the very same."""
    saved = run_folder("01_data_formatting", profile) / SAVED
    if saved.exists():
        return read_rows(saved), f"saved by notebook 01, profile {profile}"
    return dial_sft_set(**dial).rows, "built as notebook 01 builds them"


def _choose(
    examples: Sequence[Task], excluded: set[str], sft_share: float
) -> tuple[list[Task], dict[tuple[str, ReasoningFormat | None], Task], list[Drop]]:
    """The questions to ask, what they say in which format, and why the others are not asked."""
    answers: dict[str, set[str]] = {}
    for example in examples:
        answers.setdefault(example.key, set()).add(example.answer)
    chosen: dict[str, Task] = {}
    written: dict[tuple[str, ReasoningFormat | None], Task] = {}
    drops = []
    for example in examples:
        if example.split != "train":
            reason = "not a training question"
        elif example.key in excluded:
            reason = "in a set to keep apart"
        elif stage(example.key, sft_share) == "rl":
            reason = "kept for RL"
        elif len(answers[example.key]) > 1:
            reason = "duplicates contradict each other"
        elif (example.key, example.format) in written:
            reason = "duplicate question"
        else:
            chosen.setdefault(example.key, example)
            written[example.key, example.format] = example
            continue
        drops.append(Drop(reason, example.question[:100], example.id))
    return list(chosen.values()), written, drops


def _surplus(
    chosen: Sequence[Task],
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
    given: Sequence[Task],
    chosen: Sequence[Task],
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
