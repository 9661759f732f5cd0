"""Is this answer right? Numbers, LaTeX, choices and text: strictly, or by the rules of ARM's code."""

import json
import os
import re
import signal
import sys
from collections import Counter
from contextlib import suppress
from fractions import Fraction
from functools import lru_cache, partial
from itertools import accumulate
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import Literal

import yaml

from lib.formats import find_answer_like_arm, parse_response, parse_response_like_arm

Kind = str  # "number", "latex", "choice" or "text"; it comes with the rows of a dataset
Rules = Literal["strict", "arm_training", "arm_evaluation"]

MAX_LENGTH = 2_000  # characters; the longest answer of MATH-500 has 53
TIME_LIMIT_S = 2.0  # of the processor, for one comparison of LaTeX, which takes about a millisecond
MEMORY_LIMIT = 2 << 30  # bytes, for the process that compares LaTeX


def is_correct(prediction: str | None, reference: str, kind: Kind = "number") -> bool:
    """Whether an answer equals its reference. All of the answer counts: nothing is searched for in it.

    number: an integer, a decimal or a fraction a/b, compared exactly: 72.0 = 72, 0.1 = 1/10, and
        0.333 is not 1/3. Thousands commas must group by three. One `$` before or one `%` after is
        allowed and worth nothing: 50% = 50, not 0.5; $5 = 5, but $5 is not 5%. So is one full stop at
        the end: 3. = 3. An exponent of up to three digits is allowed, as Python prints 1e-05. A word,
        even a unit, makes it no number.
    latex: one expression, bare or in $..$, \\(..\\), \\[..\\] or \\boxed{..}, compared by math-verify to
        12 decimals. `x = 5` is 5; `2x = 5`, `3 = 5` or a chain is not. A unit is that of the reference,
        or of data/latex.yaml where one has none; \\{1,2\\} is not (1,2). What that file does not
        name is right only as the reference writes it. 50\\% is 50, and 0.5; `50 percent` is 50.
        What takes longer than `TIME_LIMIT_S` is wrong. Safe in threads; POSIX only; starts a process (0.3 s).
    choice: one capital letter, bare or in parentheses: B or (B), not `B.`, `b` or `B) the sea`.
    text: equal up to case and whitespace.

    A reference that cannot be read matches nothing, itself included: `is_correct(r, r, kind)` tests
    a data set. Raises ValueError for an unknown kind, RuntimeError where math-verify does not start.
    """
    if kind not in ("number", "latex", "choice", "text"):
        raise ValueError(f"kind must be number, latex, choice or text, got {kind!r}")
    if prediction is None or len(prediction) > MAX_LENGTH:
        return False
    if kind == "number":
        return _numbers_equal(_number(prediction), _number(reference))
    if kind == "latex":
        return _latex_equal(prediction, reference)
    read = _letter if kind == "choice" else _words
    return read(prediction) is not None and read(prediction) == read(reference)


def is_response_correct(
    response: str, reference: str, kind: Kind = "number", rules: Rules = "strict", *, source: str = ""
) -> bool:
    """Whether a tagged response is right, by one of three sets of rules.

    strict: a valid response (`parse_response`) whose answer `is_correct`.
    arm_training: the reward of ARM's released code (`parse_response_like_arm`, its loopholes included).
        A choice must be the bare letter; a number is what math-verify finds last in the answer.
    arm_evaluation: how ARM's tables were made. No check of tags; without an answer block the last five
        lines are the answer for MATH (latex) and AIME (`source` begins with "aime"), and no others;
        parentheses around a choice are dropped, and what wraps a yes or a no.

    The rules are chosen here and not in `is_correct`, since they differ in what they take out of a
    response as much as in how they compare it. ARM used math-verify 0.7.0; here it is a newer one.
    """
    if rules == "strict":
        parsed = parse_response(response)
        return parsed.is_valid and is_correct(parsed.answer, reference, kind)
    if rules == "arm_training":
        parsed = parse_response_like_arm(response)
        return parsed.is_valid and _equal_like_arm(parsed.answer or "", reference, kind, training=True)
    if rules == "arm_evaluation":
        answer = find_answer_like_arm(response)
        if answer is None and (kind == "latex" or source.startswith("aime")):
            answer = "\n".join(response.strip().split("\n")[-5:])
        return answer is not None and _equal_like_arm(answer, reference, kind, training=False)
    raise ValueError(f"rules must be strict, arm_training or arm_evaluation, got {rules!r}")


# ---- where an answer stands in free text -----------------------------------------------------------

_CLOSING = re.compile(r"\b(?:It shows|answer is) (\S+?)\.\s*$")


def closing_answer(text: str) -> str | None:
    """What a closing sentence says, as in "It shows 4." or "The answer is 12.", or None."""
    match = _CLOSING.search(text)
    return match[1] if match else None


def last_boxed(text: str) -> str | None:
    r"""What stands in the last \boxed{...}, braces matched, or None."""
    start = text.rfind("\\boxed")
    if start < 0:
        return None
    rest = text[start + len("\\boxed") :].lstrip()
    if not rest.startswith("{"):  # MATH also writes \boxed 2
        return re.split(r"[\s$.,]", rest, maxsplit=1)[0] or None
    depths = list(accumulate({"{": 1, "}": -1}.get(character, 0) for character in rest))
    return rest[1 : depths.index(0)].strip() or None if 0 in depths else None


# ---- numbers, choices, text --------------------------------------------------------------------

_INTEGER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_DECIMAL = rf"(?:{_INTEGER}(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]{{1,3}})?"
_NUMBER = re.compile(rf"([+-]?)(\$?)\s*({_DECIMAL})(?:\s*/\s*({_DECIMAL}))?\s*(%?)\.?")
_CHOICE = re.compile(r"\(([A-Z])\)|([A-Z])")


def _number(text: str) -> tuple[Fraction, str] | None:
    """The exact value and the unit sign, or None where the text is not one number."""
    match = _NUMBER.fullmatch(text.strip().replace("\N{MINUS SIGN}", "-"))
    if match is None:
        return None
    sign, dollar, top, bottom, percent = match.groups(default="1")
    divisor = Fraction(bottom.replace(",", ""))
    if divisor == 0 or (dollar and percent):
        return None
    return Fraction(sign + top.replace(",", "")) / divisor, dollar or percent


def _numbers_equal(a: tuple[Fraction, str] | None, b: tuple[Fraction, str] | None) -> bool:
    return a is not None and b is not None and a[0] == b[0] and (a[1] == b[1] or "" in (a[1], b[1]))


def _letter(text: str) -> str | None:
    match = _CHOICE.fullmatch(text.strip())
    return match and (match[1] or match[2])


def _words(text: str) -> str | None:
    return " ".join(text.casefold().split()) or None


# ---- ARM's rules -------------------------------------------------------------------------------

_YES_OR_NO = ("yes", "no", "true", "false", "valid", "invalid")  # the answers of six tasks of BBH


def _equal_like_arm(answer: str, reference: str, kind: Kind, *, training: bool) -> bool:
    if kind == "number":
        return _ask("arm_number", answer.replace(",", "").replace("$", ""), reference)
    if kind == "latex":
        return _ask("arm_latex", answer, reference)
    if training and kind == "text":
        raise ValueError("ARM was trained on no text answers, so its training has no rule for them")
    if not training and kind == "choice":
        return re.sub("[()]", "", answer) == re.sub("[()]", "", reference)
    if not training and reference.casefold() in _YES_OR_NO:
        return _yes_or_no(answer) == _yes_or_no(reference)
    return answer == reference  # sorted words and brackets too


def _yes_or_no(text: str) -> str:
    """What ARM's evaluation keeps of such an answer; it may be given as 1 or 0."""
    bare = re.sub(r"\\boxed\{|\\text\{|[}()\\]", "", text).strip().casefold()
    return {"0": "false", "1": "true"}.get(bare, bare)


# ---- LaTeX -------------------------------------------------------------------------------------
# math-verify drops what it does not know. So it gets no more than data/latex.yaml names, and no unit;
# all else is right where it is written as in the reference.

_LISTS = yaml.safe_load((Path(__file__).parents[1] / "data" / "latex.yaml").read_text(encoding="utf-8"))
_SYMBOL, _NOUN, _COMMAND = ("|".join(_LISTS[key].split()) for key in ("symbols", "names", "commands"))
_WRAPPINGS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), (r"\boxed{", "}"))
_SECOND = re.compile(r"\\boxed|(?<!\\)(?:\$|\\[()\[\]])")  # what is left of a second expression
_TEXT, _UNDERSTOOD, _DECIDING = (
    re.compile("|".join(_LISTS[key]).replace("COMMANDS", _COMMAND))
    for key in ("texts", "understood", "deciding")
)
_WITH_UNIT = re.compile(r"(.*?\S)((?: *\\text\{[^{}]*\})+(?:\^ *\{?[23]\}?)?)")
_ONE = rf"(?:(?:square|cubic|sq|cu) )?(?:{_SYMBOL}|{_NOUN})(?: ?[23])?"
_UNIT = re.compile(rf"{_ONE}(?:(?:/| per ){_ONE})?|degree (?:C|F|celsius|fahrenheit)")
_EQUALS, _NAME = _LISTS["equals"], "|".join(_LISTS["name"]).replace("LETTER", _LISTS["letter"])
_NAMED = re.compile(rf"(^(?:[(\[]|\\\{{)? *|[,;] *)({_NAME}) *{_EQUALS} *")
_GROUP = re.compile(r"([(\[⟦])([^()\[\]⟦⟧]*)([)\]⟧])")


def _latex_equal(prediction: str, reference: str) -> bool:
    answer, gold = _bare_latex(prediction) or "", _bare_latex(reference) or ""
    if "%" in answer + gold:
        answer, gold = (text.replace(r"\text{percent}", r"\%") for text in (answer, gold))
    if bool(re.search(_EQUALS, answer)) != bool(re.search(_EQUALS, gold)):
        answer, gold = _unnamed(answer, ordered=True), _unnamed(gold)
    if not answer or not gold:
        return False
    if _same(answer, gold) or _same(answer, re.sub(r"(?<=\d) *_ *\{?\d+\}?$", "", gold)):  # bases may lack
        return True
    (value, unit), (gold_value, gold_unit) = _split_unit(answer), _split_unit(gold)
    alone = "" if unit and gold_unit else unit + gold_unit
    if unit != gold_unit and ("%" in answer + gold or not _UNIT.fullmatch(alone)):
        return False
    plain = not any(map(_DECIDING.search, (answer, gold)))
    understood = all(re.fullmatch(rf"(?:{_UNDERSTOOD.pattern})+", text) for text in (value, gold_value))
    return plain and understood and _fences_fit(value, gold_value) and _ask("strict", value, gold_value)


def _bare_latex(text: str) -> str | None:
    """The expression without what it is wrapped in, texts as \\text{..}, or None where it is not one."""
    text = text.strip()
    for opening, closing in _WRAPPINGS:
        if text.startswith(opening) and text.endswith(closing) and len(text) >= len(opening + closing):
            text = text[len(opening) : -len(closing)].strip()
    for pattern, plain in [*_LISTS["before"], (_TEXT, _boxed), *_LISTS["after"]]:
        text = re.sub(pattern, plain, text)
    return None if _SECOND.search(text) else text.strip()


def _boxed(match: re.Match[str]) -> str:
    """A text in the singular, \\text{cm}; a bare word only where it is a unit, for it may be a product."""
    words = " ".join(map(_word, next(filter(None, match.groups()), "").split()))
    return match[0] if match[4] and not _UNIT.fullmatch(words) else rf"\text{{{words}}}"


def _word(word: str) -> str:
    """In one case and without a plural's s; a symbol as it is."""
    word = word.rstrip(".")
    if re.fullmatch(_SYMBOL, word) or not re.search("[A-Za-z]{3}", word):
        return word
    word = re.sub("(?<=[^s])s$", "", word.casefold())
    return {"feet": "foot", "inche": "inch"}.get(word, word)


def _unnamed(text: str, *, ordered: bool = False) -> str:
    """What names stand for, `x = 5`, `(x,y) = (1,2)` or `x = 1, y = 2`; nothing for other equations."""
    value, named = _NAMED.sub(r"\1", text), ",".join(dict.fromkeys(m[2] for m in _NAMED.finditer(text)))
    names = re.sub(r"(?<=[\w}]) ?\([^()]*\)|[ ()\\]", "", named).split(",")
    if re.search(_EQUALS, value) or (ordered and names != sorted(names) and names not in _LISTS["orders"]):
        return ""
    return f"({value})" if re.fullmatch(r"\w(?:,\w)+", named) and value[0] not in r"([\{" else value


def _same(answer: str, gold: str) -> bool:
    """Whether both are written alike but for spaces, braces around one sign and parentheses of a choice."""
    is_word = re.fullmatch(r"\\text\{[^{}]{3,}\}", gold)
    for pattern, plain in _LISTS["alike"]:
        answer, gold = re.sub(pattern, plain, answer), re.sub(pattern, plain, gold)
    return answer == gold or bool(is_word and _word(answer) == _word(gold))


def _split_unit(text: str) -> tuple[str, str]:
    match = _WITH_UNIT.fullmatch(text)
    return (match[1], " ".join(re.sub(r"\\text|[{}^]", " ", match[2]).split())) if match else (text, "")


def _fences(text: str) -> Counter[str]:
    text, found = text.replace(r"\{", "⟦").replace(r"\}", "⟧"), Counter[str]()
    while group := _GROUP.search(text):
        found[group[1] + group[3]] += "," in group[2]
        text = text.replace(group[0], "", 1)
    return +found


def _fences_fit(answer: str, gold: str) -> bool:
    """Whether all lists are of one kind: set, tuple or interval; one without a fence may be a set."""
    one, other = _fences(answer), _fences(gold)
    different = set((one - other) + (other - one))
    return not (one and other and different) or (different == {"⟦⟧"} and not (one & other)["⟦⟧"])


def _math_verify(rules: str, prediction: str, reference: str) -> bool:
    """Compare with math-verify, gold first. Its own time limit is off: it works in main threads only."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify
    from sympy import Pow
    from sympy.core.function import AppliedUndef
    from sympy.core.relational import Relational

    read = partial(parse, parsing_timeout=None)
    if rules != "strict":
        latex = {"extraction_config": [LatexExtractionConfig()]} if rules == "arm_latex" else {}
        return verify(read(reference, **latex), read(prediction), timeout_seconds=None)
    nits = NormalizationConfig(malformed_operators=True, nits=True)
    config = [LatexExtractionConfig(normalization_config=nits)]
    both = (f"${reference}$", f"${prediction}$")
    gold, answer = (read(text, extraction_config=config, extraction_mode="first_match") for text in both)
    if not gold or not answer:
        return False
    odd = answer[0].has(Relational) and not gold[0].has(Relational)  # to math-verify `3 = 5` is 5
    values = (one[0].atoms(Pow, AppliedUndef) for one in (answer, gold))  # and f(2) is g(3), and its inverse
    called, known = ({v for v in some if isinstance(v.as_base_exp()[0], AppliedUndef)} for some in values)
    return not odd and called == known and verify(gold, answer, float_rounding=12, timeout_seconds=None)


# ---- the process that compares LaTeX -----------------------------------------------------------
# sympy can take for ever (9^{9^9}), and a thread cannot be stopped. So a process, idle or busy with one
# question, dies by its own alarm when it has worked for the limit: its own seconds, so that a busy machine
# makes no answer wrong. multiprocessing and Pebble import the main module again, with its torch, or fork.

_idle: list[Popen[str]] = []
if hasattr(os, "register_at_fork"):  # two owners of one pipe would mix up the replies
    os.register_at_fork(after_in_child=_idle.clear)


@lru_cache(maxsize=1 << 14)  # a policy that found a slow answer repeats it
def _ask(rules: str, prediction: str, reference: str) -> bool:
    """Compare in another process; False where that takes longer than TIME_LIMIT_S or too much memory."""
    if len(prediction) > MAX_LENGTH:
        return False
    process = _take_process()
    assert process.stdin and process.stdout  # pipes
    reply = ""
    with suppress(BrokenPipeError):
        print(json.dumps([TIME_LIMIT_S, rules, prediction, reference]), file=process.stdin, flush=True)
        reply = process.stdout.readline()
    if reply:
        _idle.append(process)
    else:
        process.wait()
    return reply == "true\n"


def _take_process() -> Popen[str]:
    """An idle process, or a new one where all are busy: as many run as threads have asked at once."""
    with suppress(IndexError):
        while (process := _idle.pop()).poll() is not None:
            pass
        return process
    program = f"import sys; sys.path = {sys.path}; from lib.verify import _serve; _serve()"
    command = [sys.executable, "-c", program]  # in a session of its own: Ctrl-C is for the parent
    process = Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, text=True, start_new_session=True)
    if process.stdout is None or process.stdout.readline() != "ready\n":
        raise RuntimeError("no process to compare LaTeX could be started: does `import math_verify` work?")
    return process


def _serve() -> None:
    """Answer questions, a line each, until the input ends."""
    import resource

    replies, sys.stdout = sys.stdout, sys.stderr  # antlr prints its warnings
    with suppress(ValueError, OSError):  # macOS knows no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    import math_verify  # noqa: F401  the import is slow, so it is done before any clock runs

    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        limit, *question = json.loads(line)
        equal = False
        signal.setitimer(signal.ITIMER_PROF, limit)
        with suppress(Exception):
            equal = _math_verify(*question)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(bool(equal)), file=replies, flush=True)
