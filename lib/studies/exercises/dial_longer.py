"""The longer exercises of notebook 00: a third digit, the price of easy questions, what is wrong first."""

from __future__ import annotations

from lib import dial
from lib.formats import ReasoningFormat
from lib.studies.dial_world import first_fault, taken_apart
from lib.studies.exercises.core import Cases, Check

DIRECT, SHORT_COT, CODE, LONG_COT = ReasoningFormat


def _third_digit(depth: int, *, reach: int = 8, price: bool = True) -> ReasoningFormat | None:
    """The cheapest format that is right if short CoT reached so far; a third digit costs a token."""
    ends = {format: dial.reach(format) for format in ReasoningFormat} | {SHORT_COT: reach}
    right = [format for format in ReasoningFormat if depth <= ends[format]]
    if not price:
        return SHORT_COT if SHORT_COT in right else next(iter(right), None)
    cost = {format: dial.token_cost(format, depth) for format in right}
    return min(right, key=lambda format: cost[format] + (format == SHORT_COT and depth > 5), default=None)


third_digit = Check(
    "third_digit",
    _third_digit,
    lambda: [(depth,) for depth in range(1, 14)],
    {
        "That is the oracle with two digits. Three digits make four pieces of two operations.": (
            lambda depth: _third_digit(depth, reach=6)
        ),
        "Each further digit adds one piece of h = 2 operations, and no more: 8, not 12.": (
            lambda depth: _third_digit(depth, reach=12)
        ),
        "Depth 8 is reached, too: four pieces of two operations.": lambda depth: _third_digit(depth, reach=7),
        "Easy questions are still cheapest without any digit: compare the token costs.": (
            lambda depth: _third_digit(depth, price=False)
        ),
    },
)


def _easy_price(depths: list[int], *, of_all: bool = False) -> tuple[float, float]:
    """What share of long CoT's tokens easy questions take, and what share of those the oracle saves."""
    easy = [depth for depth in depths if dial.tier(depth) == "easy"]
    spent, every = (sum(dial.token_cost(LONG_COT, depth) for depth in part) for part in (easy, depths))
    needed = sum(dial.token_cost(dial.oracle_format(depth) or LONG_COT, depth) for depth in easy)
    return spent / every, (spent - needed) / (every if of_all else spent)


easy_price = Check(
    "easy_price",
    _easy_price,
    lambda: [([1, 2, 3, 6, 7, 12],), ([1, 1, 4, 9],), ([2, 5, 11],), ([1, 2],)],
    {
        "The first is a share of tokens, and not of questions: easy ones are shorter in long CoT as well.": (
            lambda depths: (len([d for d in depths if d <= 2]) / len(depths), _easy_price(depths)[1])
        ),
        "The second is a share of what easy questions took, and not of all tokens.": (
            lambda depths: _easy_price(depths, of_all=True)
        ),
        "The second is what the oracle saves, and not what it still spends.": (
            lambda depths: (_easy_price(depths)[0], 1 - _easy_price(depths)[1])
        ),
        "Give shares of 1, and not per cent.": (
            lambda depths: tuple(100 * share for share in _easy_price(depths))
        ),
    },
)


def _responses() -> Cases:
    question = dial.parse_question("The red dial shows 3. Turn it +4 x7 then +1 x9. Now?")
    right = dial.untagged_response(question, LONG_COT)
    spoilt = [
        ("turns +4 x7 +1 x9", "turns +4 x7 x9"),  # copied without +1, and worked in full
        ("9 +1 = 0\n", ""),
        ("7 x7 = 9\n9 +1 = 0\n0 x9 = 0", "7 x7 = 8\n8 +1 = 9\n9 x9 = 1"),
        ("9 +1 = 0\n0 x9 = 0", "9 +1 = 0\n1 x9 = 9"),
        ("It shows 0.", "It shows 5."),
        ("7 x7 = 9", "7 x7 = 1"),
    ]
    texts = [right, *(right.replace(*change) for change in spoilt)]
    both = texts[1].replace("0 x9 = 0", "0 x9 = 7").replace("It shows 0.", "It shows 5.")
    return [(question, text) for text in [*texts, both]]


def _faults(question: dial.Question, text: str) -> list[str]:
    """Every fault of a long chain of thought, from the top, each looked for alone."""
    worked = taken_apart(text)
    found = ["copy"] if worked.restated != question.operations else []
    if tuple(operation for _, operation, _ in worked.lines) != worked.restated:
        found.append("lines")
    before = question.start
    steps = []
    for start, operation, after in worked.lines:
        steps.append(start == before and dial.TURNS[operation][start] == after)
        before = after
    return found + ["step"] * (not all(steps)) + ["answer"] * (worked.answer != before)


first_wrong = Check(
    "first_wrong",
    first_fault,
    _responses,
    {
        "This gives the last fault. Look from the top, and stop at the first.": (
            lambda question, text: next(iter(_faults(question, text)[::-1]), None)
        ),
        "It looks at the answer alone. A response may go wrong long before.": (
            lambda question, text: "answer" if taken_apart(text).answer != question.answer else None
        ),
        "A line may be calculated well and still be wrong: it must begin where the last one ended.": (
            lambda question, text: next(
                (f for f in _faults(question, text) if f != "step" or _miscalculated(text)), None
            )
        ),
        "The copy comes first: compare the restated operations with those of the question.": (
            lambda question, text: next((f for f in _faults(question, text) if f != "copy"), None)
        ),
        "Where nothing is wrong, give None.": (
            lambda question, text: next(iter(_faults(question, text)), "answer")
        ),
    },
)


def _miscalculated(text: str) -> bool:
    return any(dial.TURNS[operation][before] != after for before, operation, after in taken_apart(text).lines)
