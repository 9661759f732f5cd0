"""What is optimal: the reach and the cost of each format, and the cheapest one that is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from lib.dial.responses import statement_sizes
from lib.dial.world import (
    FUSED_OPERATIONS,
    JOTTED_AFTER,
    MAX_DEPTH,
    MAX_STATEMENTS,
    Question,
    _check_depth,
)
from lib.formats import ReasoningFormat


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


def oracle_rows(
    questions: Sequence[Question], *, cost: Callable[[ReasoningFormat, int], int] = token_cost
) -> pd.DataFrame:
    """The rows of an ideal policy on dial questions: always the cheapest format that is right.

    Where no format reaches, it is wrong as cheaply as it can be.
    """
    chosen = [oracle_format(question.depth) for question in questions]
    return pd.DataFrame(
        {
            "tier": [question.tier for question in questions],
            "depth": [question.depth for question in questions],
            "format": chosen,
            "correct": [format is not None for format in chosen],
            "tokens": [
                cost(format or ReasoningFormat.DIRECT, question.depth)
                for format, question in zip(chosen, questions, strict=True)
            ],
        }
    )
