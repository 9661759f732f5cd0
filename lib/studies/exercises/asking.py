"""Your turn in notebook 04: force a format, consensus, a vote, pairs, a budget, and the exercises' rules."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from operator import eq, sub
from statistics import mean, pstdev, variance

from lib.formats import ReasoningFormat, detect_format
from lib.measure.intervals import Z95, mean_interval
from lib.measure.modes import consensus, majority_vote
from lib.studies import arm_choice
from lib.studies.arm_choice import Rates
from lib.studies.budgets import close_response
from lib.studies.exercises.core import Check
from lib.verify import is_correct

DIRECT, SHORT_COT, CODE, LONG_COT = ReasoningFormat
Answer = str | None

# ---- force a format ------------------------------------------------------------------------------

opening = Check(
    "opening",
    lambda format: format.prefix,
    lambda: [(format,) for format in ReasoningFormat],
    {
        "The tag is `format.tag`: ARM's tags are not the names of the formats.": (
            lambda format: f"<{format.value.upper()}>\n"
        ),
        "A tag stands on a line of its own: the model was trained to go on after the line break.": (
            lambda format: f"<{format.tag}>"
        ),
        "That tag closes. To force a format, open it.": lambda format: f"</{format.tag}>\n",
        "No words are needed: the model was trained to go on from the tag itself.": (
            lambda format: f"Use {format.value}.\n"
        ),
        "Direct is forced as well, by the tag of the answer.": (
            lambda format: "" if format is DIRECT else format.prefix
        ),
        "Only the first tag is forced. What follows is for the model to write.": (
            lambda format: f"{format.prefix}<ANSWER>\n"
        ),
    },
)

# ---- consensus -----------------------------------------------------------------------------------


def _two_of_three(direct: Answer, short_cot: Answer, code: Answer, long_cot: Answer) -> tuple[Answer, bool]:
    [(found, votes)] = Counter([direct, short_cot, code]).most_common(1)
    return (found, False) if votes >= 2 and found is not None else (long_cot, True)


def _neighbours(direct: Answer, short_cot: Answer, code: Answer, long_cot: Answer) -> tuple[Answer, bool]:
    agree = direct is not None and direct in (short_cot, code)
    return (direct, False) if agree else (long_cot, True)


def _of_four(direct: Answer, short_cot: Answer, code: Answer, long_cot: Answer) -> tuple[Answer, bool]:
    [(found, votes)] = Counter([long_cot, direct, short_cot, code]).most_common(1)
    return (found, False) if votes >= 2 and found is not None else (long_cot, True)


def _none_counts(direct: Answer, short_cot: Answer, code: Answer, long_cot: Answer) -> tuple[Answer, bool]:
    [(found, votes)] = Counter([direct, short_cot, code]).most_common(1)
    return (found, False) if votes >= 2 else (long_cot, True)


two_of_three = Check(
    "two_of_three",
    _two_of_three,
    lambda: list(product(["3", "7", None], repeat=4)),
    {
        "That is consensus: here two of the three are enough.": consensus,
        "Two answers that cannot be read are None, and None agrees with nothing.": _none_counts,
        "Short CoT and code may agree with each other, and direct be the odd one out.": _neighbours,
        "Long CoT has no vote: it is asked only where no two of the three agree.": _of_four,
        "Give the second part as well: whether long CoT was used.": (lambda *given: _two_of_three(*given)[0]),
    },
)


decide = Check(
    "decide",
    consensus,
    lambda: list(product(["3", "7", None], repeat=4)),
    {
        "Two of three is another rule. Here all three must agree.": _two_of_three,
        "Three answers that cannot be read are None, and None agrees with nothing.": (
            lambda d, s, c, long: (d, False) if d == s == c else (long, True)
        ),
        "Give the second part as well: whether long CoT was used.": (lambda *given: consensus(*given)[0]),
        "The second part says whether long CoT was used, not whether they agree.": (
            lambda *given: (consensus(*given)[0], not consensus(*given)[1])
        ),
        "Long CoT takes no part in the agreement: it is asked only where the three differ.": (
            lambda d, s, c, long: (d, False) if d is not None and d == s == c == long else (long, True)
        ),
        "All three are compared: code, too.": (
            lambda d, s, c, long: (d, False) if d is not None and d == s else (long, True)
        ),
        "`a != b != c` compares neighbours, and does not stop where only two of them differ.": (
            lambda d, s, c, long: (long, True) if d is None or (d != s != c) else (d, False)
        ),
        "One that cannot be read breaks the agreement; it is not left out.": (
            lambda d, s, c, long: (
                ({d, s, c} - {None}).pop() if len({d, s, c} - {None}) == 1 else long,
                len({d, s, c} - {None}) != 1,
            )
        ),
        "Where they differ long CoT answers, and not one of the three.": (
            lambda d, s, c, long: (d, False) if d is not None and d == s == c else (c, True)
        ),
    },
)

# ---- a vote --------------------------------------------------------------------------------------


def _as_numbers(a: str, b: str) -> bool:
    return is_correct(a, b)


def _most(ballots: Sequence[Answer], equal: Callable[[str, str], bool], *, last: bool = False) -> Answer:
    read = [ballot for ballot in ballots if ballot is not None][:: -1 if last else 1]
    return max(read, key=lambda one: sum(equal(one, other) for other in read))


def _with_none(ballots: Sequence[Answer], equal: Callable[[str, str], bool]) -> Answer:
    return majority_vote([ballot or "None" for ballot in ballots], equal=equal) if ballots else None


vote = Check(
    "vote",
    lambda ballots, equal: majority_vote(ballots, equal=equal),
    lambda: [
        (["1", "2", "2"], eq),
        (["1", "2", None], eq),
        ([None, "5", None], eq),
        ([None, None], eq),
        (["4", "4", "5", "5"], eq),
        (["9", "8", "8", "9", "7"], eq),
        (["3", "1/2", "3", "0.5", ".5"], _as_numbers),
    ],
    {
        "An answer that cannot be read does not vote.": (
            lambda ballots, equal: (
                max(ballots, key=ballots.count) if equal is eq else majority_vote(ballots, equal=equal)
            )
        ),
        "Where nothing can be read, give None.": _most,
        "In a tie the first answer given wins, not the last: then chance has no say.": (
            lambda ballots, equal: _most(ballots, equal, last=True) if any(ballots) else None
        ),
        "In a tie the first answer given wins, not the largest.": (
            lambda ballots, equal: (
                _most(sorted(filter(None, ballots), reverse=True), equal) if any(ballots) else None
            )
        ),
        "`equal` is not used: 1/2, 0.5 and .5 are one answer here.": (
            lambda ballots, equal: majority_vote(ballots)
        ),
        "That is the number of votes. Give the answer.": (
            lambda ballots, equal: sum(majority_vote(ballots, equal=equal) == ballot for ballot in ballots)
        ),
        "No majority is needed: the answer with the most votes wins, even with less than half.": (
            lambda ballots, equal: next(
                (
                    one
                    for one in filter(None, ballots)
                    if sum(equal(one, other) for other in filter(None, ballots)) > len(ballots) / 2
                ),
                None,
            )
        ),
        "That is the first answer that can be read. Count votes.": (
            lambda ballots, equal: next(filter(None, ballots), None)
        ),
    },
)

# ---- two modes on the same questions -------------------------------------------------------------


def _around(middle: float, error: float) -> tuple[float, float]:
    return middle - Z95 * error, middle + Z95 * error


def _unpaired(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    error = math.sqrt(variance(ours) / len(ours) + variance(theirs) / len(theirs))
    return _around(mean(ours) - mean(theirs), error)


def _differences(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(ours, theirs, strict=True)]


def _paired(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    return mean_interval(_differences(ours, theirs))


paired_interval = Check(
    "paired_interval",
    _paired,
    lambda: [
        ([1, 1, 0, 1, 1, 0, 1, 1], [1, 0, 0, 1, 1, 0, 0, 1]),
        ([1, 0, 0, 0, 1], [1, 1, 0, 0, 1]),
        ([4.0, 8.0, 19.0, 54.0], [40.0, 47.0, 54.0, 61.0]),
    ],
    {
        "Both answered the same questions. Take differences first, question by question.": (_unpaired),
        "This divides by n in the deviation; for a sample it is n - 1.": (
            lambda ours, theirs: _around(
                mean(_differences(ours, theirs)), pstdev(_differences(ours, theirs)) / math.sqrt(len(ours))
            )
        ),
        "That is the spread of single differences. The mean's is smaller, by the square root of n.": (
            lambda ours, theirs: _around(
                mean(_differences(ours, theirs)), math.sqrt(variance(_differences(ours, theirs)))
            )
        ),
        "The sign: ours minus theirs.": lambda ours, theirs: _paired(theirs, ours),
        "One standard error to each side holds 68 %. For 95 % it is 1.96 of them.": (
            lambda ours, theirs: mean_interval(_differences(ours, theirs), z=1.0)
        ),
        "These are the middle and the half width. Give both ends.": (
            lambda ours, theirs: (sum(_paired(ours, theirs)) / 2, -sub(*_paired(ours, theirs)) / 2)
        ),
        "Differences have a sign: without it, gains and losses do not cancel.": (
            lambda ours, theirs: mean_interval([abs(one) for one in _differences(ours, theirs)])
        ),
        "That is the variance over the root of n. The deviation is the variance's square root.": (
            lambda ours, theirs: _around(
                mean(_differences(ours, theirs)), variance(_differences(ours, theirs)) / math.sqrt(len(ours))
            )
        ),
    },
)

# ---- a budget ------------------------------------------------------------------------------------


def _closed(text: str, *, twice: bool = False, again: bool = False, close: bool = True, tag: str = "") -> str:
    """`close_response` with one thing wrong."""
    format = detect_format(text)
    if format in (None, DIRECT) or ("<ANSWER>" in text and not again):
        return text
    end = f"</{tag or format.tag}>"
    reasoning = text.rstrip() if twice else text.rstrip().removesuffix(end).rstrip()
    return "\n".join([reasoning, *([end] if close else []), "<ANSWER>\n"])


close = Check(
    "close",
    close_response,
    lambda: [
        ("<LONG_COT>\nOkay, let me think. The dial",),
        ("<CODE>\nd = 3\nd += 4;  ",),
        ("<COT>\nJot 9\n</COT>\n",),
        ("<LONG_COT>\n7 +9 = 6\n</LONG_COT>\n<ANSWER>\n",),
        ("<ANSWER>\n",),
        ("It shows",),
    ],
    {
        "The reasoning is still open when the answer begins, and the strict reader refuses that.": (
            partial(_closed, close=False)
        ),
        "It is closed a second time where it was closed already.": partial(_closed, twice=True),
        "The answer has begun already in one of these: leave it as it is.": partial(_closed, again=True),
        "Each format is closed by its own tag, not by </LONG_COT>.": partial(_closed, tag="LONG_COT"),
        "A direct response has nothing to close, and what opens with no tag has no format: leave both.": (
            lambda text: (
                f"{text.rstrip()}\n</LONG_COT>\n<ANSWER>\n"
                if detect_format(text) in (None, DIRECT)
                else close_response(text)
            )
        ),
        "The reasoning is closed, and then the answer must be opened: <ANSWER> is missing.": (
            lambda text: (
                close_response(text)
                if "<ANSWER>" in text
                else (close_response(text).removesuffix("<ANSWER>\n"))
            )
        ),
        "A tag stands on a line of its own, <ANSWER> as well: the model goes on after the line break.": (
            lambda text: (
                close_response(text)
                if "<ANSWER>" in text
                else (close_response(text).removesuffix("\n") if detect_format(text) else text)
            )
        ),
        "Spaces at the end of what was written come before the closing tag: take them away first.": (
            lambda text: (
                f"{text}\n</{own.tag}>\n<ANSWER>\n"
                if (own := detect_format(text)) and own is not DIRECT and "</" not in text
                else close_response(text)
            )
        ),
    },
)

# ---- consensus that stops early ------------------------------------------------------------------


def _stop_early(
    direct: Answer, short_cot: Answer, code: Answer, long_cot: Answer
) -> tuple[Answer, bool, bool]:
    if direct is None or direct != short_cot:
        return long_cot, False, True
    return (direct, True, False) if short_cot == code else (long_cot, True, True)


stop_early = Check(
    "stop_early",
    _stop_early,
    lambda: list(product(["3", "7", None], repeat=4)),
    {
        "That asks code each time. Where direct and short CoT differ, three cannot agree any more.": (
            lambda *given: (consensus(*given)[0], True, consensus(*given)[1])
        ),
        "Where direct and short CoT agree, code must still be asked: it may differ.": (
            lambda d, s, c, long: (d, False, False) if d is not None and d == s else (long, False, True)
        ),
        "Two answers that cannot be read are None, and None agrees with nothing.": (
            lambda d, s, c, long: (
                (long, False, True) if d != s else (d, True, False) if s == c else (long, True, True)
            )
        ),
        "Give all three parts: the answer, whether code was asked, and whether long CoT was.": (
            lambda *given: _stop_early(*given)[::2]
        ),
        "The second part says whether code was asked, the third whether long CoT was.": (
            lambda *given: (_stop_early(*given)[0], *_stop_early(*given)[:0:-1])
        ),
        "Where they differ long CoT answers, and not one of the three.": (
            lambda d, s, c, long: (d, *_stop_early(d, s, c, long)[1:])
        ),
    },
)

# ---- a router ------------------------------------------------------------------------------------

TOKENS = {
    1: {"direct": 4.0, "short_cot": 8.0, "code": 14.0, "long_cot": 40.0},
    4: {"direct": 4.0, "short_cot": 10.0, "code": 20.0, "long_cot": 61.0},
    8: {"long_cot": 89.0, "code": 30.0, "short_cot": 10.0, "direct": 4.0},
}
RATES = {
    1: {"direct": 1.0, "short_cot": 1.0, "code": 0.99, "long_cot": 0.98},
    4: {"direct": 0.2, "short_cot": 0.96, "code": 0.99, "long_cot": 1.0},
    8: {"long_cot": 0.5, "code": 0.46, "short_cot": 0.2, "direct": 0.1},
}


def _pick(
    rates: Rates, tokens: Rates, keep: Callable[[float, float], bool], *, dear: bool = False
) -> dict[int, str]:
    """`route` with another rule for what is good enough, or the dearest in place of the cheapest."""
    sign = -1 if dear else 1
    chosen = {}
    for depth, of in rates.items():
        costs = {f: sign * tokens[depth][f] for f, rate in of.items() if keep(rate, max(of.values()))}
        chosen[depth] = min(costs, key=costs.__getitem__)
    return chosen


route = Check(
    "route",
    arm_choice.route,
    lambda: [(RATES, TOKENS, 0.02), (RATES, TOKENS, 0.0), (RATES, TOKENS, 0.05), (RATES, TOKENS, 1.0)],
    {
        "That is the most accurate format. A cheaper one that is nearly as good is wanted.": (
            lambda rates, tokens, loss: {depth: max(of, key=of.__getitem__) for depth, of in rates.items()}
        ),
        "That is the cheapest format, right or wrong.": (
            lambda rates, tokens, loss: {depth: min(of, key=of.__getitem__) for depth, of in tokens.items()}
        ),
        "`loss` is measured from the best format at this depth, not from 1: at depth 8 nothing is good.": (
            lambda rates, tokens, loss: {
                depth: next(iter(_pick({depth: of}, tokens, lambda r, best: r >= 1 - loss).values()))
                if max(of.values()) >= 1 - loss
                else max(of, key=of.__getitem__)
                for depth, of in rates.items()
            }
        ),
        "Of those that are good enough this takes the dearest.": (
            lambda rates, tokens, loss: _pick(rates, tokens, lambda r, best: r >= best - loss, dear=True)
        ),
    },
)
