"""Gold responses: what each format writes about a question, tagged for SFT and untagged for the base."""

from __future__ import annotations

import re

from lib.dial.world import FUSED_OPERATIONS, JOTTED_AFTER, MAX_STATEMENTS, PAUSES, STATEMENTS, Question
from lib.formats import ReasoningFormat, render_response

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
    lines, done = [f"d = {question.start}"], 0
    for size in statement_sizes(question.depth):
        statements = [STATEMENTS[op] for op in question.operations[done : done + size]]
        done += size
        lines.append(f"{' '.join(statements)} d %= 10  # {question.values[done - 1]}")
    return "\n".join([*lines, "answer = d"])


def monologue(question: Question) -> str:
    """Long CoT: restate the question, work every operation, look at every value again."""
    before = (question.start, *question.values)
    steps = [
        f"{a} {op} = {b}" for a, op, b in zip(before, question.operations, question.values, strict=False)
    ]
    return "\n".join(
        [
            f"Okay, let me think. The dial shows {question.start} and turns {' '.join(question.operations)}.",
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
    return "\n".join(filter(None, [rationale(question, format), f"It shows {question.answer}."]))


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


def read_untagged(text: str) -> tuple[ReasoningFormat | None, str | None]:
    """The style that an untagged response begins in, and its answer: how to read the base model."""
    style = next((format for format, start in UNTAGGED_PREFIX.items() if text.startswith(start)), None)
    return style, untagged_answer(text)
