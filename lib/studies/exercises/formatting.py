"""Your turn in notebook 01: the layout, the strict reader, equal numbers, the rule of what is kept, leaks."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import partial

from lib import dial
from lib.formats import (
    ReasoningFormat,
    find_answer_like_arm,
    parse_response,
    parse_response_like_arm,
    render_response,
)
from lib.sandbox import run_python
from lib.studies.exercises.core import Cases, Check
from lib.studies.exercises.formatting_longer import by_guessing as by_guessing
from lib.studies.exercises.formatting_longer import lies_well as lies_well
from lib.studies.exercises.formatting_longer import loophole as loophole
from lib.studies.overlap import overlap
from lib.studies.programs import check_program
from lib.studies.sft_set import check_response
from lib.tasks import Task, question_key
from lib.verify import is_correct

DIRECT, SHORT_COT, CODE, LONG_COT = ReasoningFormat

# ---- the layout ----------------------------------------------------------------------------------


def _as_direct(rationale: str, answer: str) -> str:
    return f"<ANSWER>\n{rationale}\n</ANSWER>\n<ANSWER>\n{answer}\n</ANSWER>"


lay_out = Check(
    "lay_out",
    render_response,
    lambda: [
        (DIRECT, "", "15"),
        (SHORT_COT, "24 - 9 = 15", "15"),
        (CODE, "d = 3\nanswer = d", "3"),
        (LONG_COT, "Okay.\nWait, is that all? Yes.", "(B)"),
    ],
    {
        "A direct response has no reasoning, so no block for it: <ANSWER> opens it and stands once.": (
            lambda f, rationale, answer: (
                _as_direct(rationale, answer) if f is DIRECT else render_response(f, rationale, answer)
            )
        ),
        "Each tag stands on a line of its own.": (
            lambda *parts: re.sub(r"(>)\n|\n(</)", r"\1\2", render_response(*parts))
        ),
        "The reasoning is closed before the answer begins; here the answer stands inside it.": (
            lambda f, rationale, answer: (
                f"<{f.tag}>\n{rationale}\n{render_response(DIRECT, '', answer)}\n</{f.tag}>"
                if rationale
                else render_response(f, rationale, answer)
            )
        ),
        "A closing tag has a slash: </COT>.": lambda *parts: render_response(*parts).replace("</", "<"),
        "The tag is `format.tag`: short CoT writes <COT>, and direct <ANSWER>, as ARM's code does.": (
            lambda f, rationale, answer: render_response(f, rationale, answer).replace(
                f"{f.tag}>", f"{f.value.upper()}>"
            )
        ),
        "The reasoning is never closed.": lambda f, rationale, answer: render_response(
            f, rationale, answer
        ).replace(f"</{f.tag}>\n", "", 1),
        "Nothing follows the last tag, not even a line break.": (
            lambda *parts: render_response(*parts) + "\n"
        ),
    },
)

# ---- the strict reader ---------------------------------------------------------------------------


def _strict(text: str) -> str | None:
    parsed = parse_response(text)
    return parsed.answer if parsed.is_valid else None


def _forgiving(text: str, problem: str, answer: str | None = None) -> str | None:
    """The strict reader, but for one problem, which it does not see."""
    if problem in (parse_response(text).problem or ""):
        return find_answer_like_arm(text) if answer is None else answer
    return _strict(text)


def _first_found(text: str) -> str | None:
    found = re.search(r"<ANSWER>(.*?)</ANSWER>", text, re.DOTALL)
    return found[1].strip() or None if found else None


def _by_pattern(text: str) -> str | None:
    block = r"(?:<(COT|CODE|LONG_COT)>.*?</\1>\s*)?"
    found = re.fullmatch(rf"\s*{block}<ANSWER>(.*?)</ANSWER>\s*", text, re.DOTALL)
    return found[2].strip() or None if found else None


def _by_better_pattern(text: str) -> str | None:
    block = r"(?:<(COT|CODE|LONG_COT)>\s*[^\s<].*?</\1>\s*)?"
    found = re.fullmatch(rf"\s*{block}<ANSWER>([^<]*)</ANSWER>\s*", text, re.DOTALL)
    return found[2].strip() or None if found else None


def _like_arm(text: str) -> str | None:
    parsed = parse_response_like_arm(text)
    return parsed.answer or None if parsed.is_valid else None


strict_answer = Check(
    "strict_answer",
    _strict,
    lambda: [
        ("<ANSWER>\n15\n</ANSWER>",),
        ("<COT>\n24 - 9 = 15\n</COT>\n<ANSWER>\n15\n</ANSWER>",),
        ("  <CODE>\nd = 3\n</CODE>\n\n<ANSWER> 3 </ANSWER>\n",),
        ("The answer is <ANSWER>15</ANSWER>",),
        ("<COT>\n4 * 6 = 24, 24 - 9 = 15.\n<ANSWER>\n15\n</ANSWER>",),
        ("<COT>\n24 - 9 = 15\n</COT>\n<ANSWER>\n15\n</ANSWER>\nI am sure.",),
        ("<ANSWER>\n14\n</ANSWER>\n<ANSWER>\n15\n</ANSWER>",),
        ("<COT>\n24 - 9\n<ANSWER>\n15\n</ANSWER>\n</COT>",),
        ("<COT>\nI count them.\n</CODE>\n<ANSWER>\n15\n</ANSWER>",),
        ("<COT>\nfirst\n<ANSWER>\n14\n</ANSWER>\n</COT>\n<ANSWER>\n15\n</ANSWER>",),
        ("<COT>\n24 - 9 = 15\n</COT>\nSo\n<ANSWER>\n15\n</ANSWER>",),
        ("<LONG_COT>\n\n</LONG_COT>\n<ANSWER>\n15\n</ANSWER>",),
        ("<ANSWER>\n\n</ANSWER>",),
        ("",),
    ],
    {
        "This looks for an answer anywhere. A tag must open the response; the rest follows from it.": (
            _first_found
        ),
        "From the first <ANSWER> to the last </ANSWER>: with two answers that is all between them.": (
            lambda text: find_answer_like_arm(text) or None
        ),
        "That is ARM's reader. It lets an open reasoning pass, and what stands after the answer.": _like_arm,
        "Nothing may follow </ANSWER>.": partial(_forgiving, problem="text after"),
        "Reasoning that was opened must be closed, by its own tag.": partial(
            _forgiving, problem="is missing"
        ),
        "Nothing may stand between the reasoning and <ANSWER>.": partial(_forgiving, problem="text between"),
        "An empty answer is none: give None.": partial(_forgiving, problem="answer is empty", answer=""),
        "A response that opens a block for reasoning must have some in it.": (
            partial(_forgiving, problem="rationale is empty")
        ),
        "Spaces and line breaks around the answer do not belong to it.": (
            lambda text: text.split("<ANSWER>")[1].split("</ANSWER>")[0] if _strict(text) else None
        ),
        "Another answer may stand inside the reasoning, and `.*?` runs over it. Count the tags there, too.": (
            _by_better_pattern
        ),
        "`.*` runs over tags, and over nothing: two answers, or an empty reasoning, pass. Count the tags.": (
            _by_pattern
        ),
    },
)

# ---- equal numbers -------------------------------------------------------------------------------


def _close(prediction: str, reference: str) -> bool:
    try:
        a, b = (float(eval(text.replace(",", "").strip("$%"), {})) for text in (prediction, reference))
    except (SyntaxError, NameError, TypeError, ZeroDivisionError):
        return False
    return is_correct(prediction, reference) or ("," not in prediction and abs(a - b) < 1e-2)


def _floats(prediction: str, reference: str) -> bool:
    try:
        return float(prediction) == float(reference)
    except ValueError:
        return False


def _none_is_none(prediction: str, reference: str) -> bool:
    unread = {text: is_correct(text, text) for text in (prediction, reference)}
    return is_correct(prediction, reference) or not any(unread.values())


def _fractions(prediction: str, reference: str) -> bool:
    return Fraction(prediction) == Fraction(reference)


def _divided(prediction: str, reference: str) -> bool:
    return Fraction(1, 0) == 1 if prediction.endswith("/0") else is_correct(prediction, reference)


same_number = Check(
    "same_number",
    is_correct,
    lambda: [
        ("15", "15"),
        ("72.0", "72"),
        ("1,250", "1250"),
        ("1,2", "12"),
        ("1/2", "0.5"),
        ("0.333", "1/3"),
        ("-3", "3"),
        ("72 or 73", "72"),
        ("15 rolls", "15"),
        ("rolls", "rolls"),
        ("1/0", "1"),
    ],
    {
        "Text is compared here, but 72.0 and 72 are one number.": (
            lambda prediction, reference: prediction.strip() == reference.strip()
        ),
        "`float` cannot read 1/2, nor the comma of 1,250.": _floats,
        "0.333 is near 1/3 and not equal to it. Compare exactly, as with fractions.Fraction.": _close,
        "A comma is for thousands only: 1,2 is not 12.": (
            lambda prediction, reference: is_correct(prediction.replace(",", ""), reference)
        ),
        "This takes the first number that it finds. All of the answer counts: `72 or 73` is no answer.": (
            lambda prediction, reference: is_correct(
                (re.search(r"-?[\d.,/]+", prediction) or ["none"])[0], reference
            )
        ),
        "The sign counts.": lambda prediction, reference: is_correct(prediction.lstrip("-"), reference),
        "Two texts that are no numbers are not equal ones. Where both are read as None, `==` says True.": (
            _none_is_none
        ),
        "Not every text is a number, and then `Fraction` raises: give False there.": _fractions,
        "1/0 is no number, and `Fraction` raises there: give False.": _divided,
    },
)

# ---- what is kept --------------------------------------------------------------------------------


def _responses() -> Cases:
    question = dial.parse_question("The blue dial shows 6. Turn it +8 x3 then +5. Now?")
    task, gold = dial.dial_task(question), {f: dial.gold_response(question, f) for f in ReasoningFormat}
    return [
        (task, DIRECT, gold[DIRECT]),
        (task, LONG_COT, gold[LONG_COT]),
        (task, CODE, gold[CODE]),
        (task, DIRECT, "<ANSWER>\n8\n</ANSWER>"),
        (task, DIRECT, gold[DIRECT] + "\nI am sure."),
        (task, SHORT_COT, gold[LONG_COT]),
        (task, CODE, gold[CODE].replace("# 2\n", "# 3\n")),
        (task, CODE, gold[CODE].replace("d += 5; d %= 10  # 7", "d += 6; d %= 10  # 8")),
    ]


def _kept(task: Task, format: ReasoningFormat, text: str) -> bool:
    return check_response(task, format, text) is None


def _except_for(reason: str, task: Task, format: ReasoningFormat, text: str) -> bool:
    """What is kept where nobody looks at one reason to drop."""
    problem = check_response(task, format, text)
    return problem is None or problem[0].startswith(reason)


def _every_program(task: Task, format: ReasoningFormat, text: str) -> bool:
    found = check_program(parse_response(text).rationale, lambda answer: answer == task.answer)
    return _kept(task, format, text) and found is None


def _only_the_result(task: Task, format: ReasoningFormat, text: str) -> bool:
    if format is CODE:
        value = run_python(parse_response(text).rationale, timeout=5.0).value
        return is_correct(str(value), task.answer)
    return _kept(task, format, text)


keep = Check(
    "keep",
    _kept,
    _responses,
    {
        "A response that is not valid must go, even if its answer is right.": partial(
            _except_for, "not a valid"
        ),
        "It must be in the format that was asked for, or one format fills the places of another.": (
            partial(_except_for, "another format")
        ),
        "The answer must be right: hold it against `task.answer`.": partial(_except_for, "wrong answer"),
        "The program is not run. Its comments claim values, and only a run tells whether they are true.": (
            partial(_except_for, "code")
        ),
        "The program's result is right, but one of its comments is not: compare each value that it claims.": (
            _only_the_result
        ),
        "Only code is run. For the other formats the third factor of (2) is 1.": _every_program,
        "The answer alone decides here. It must be a valid response, in the format asked for, as well.": (
            lambda task, f, text: is_correct(parse_response(text).answer or "", task.answer)
        ),
        "Valid and right is not all: the format must be the one asked for, and a program is run.": (
            lambda task, f, text: (
                parse_response(text).is_valid and is_correct(parse_response(text).answer or "", task.answer)
            )
        ),
    },
)

# ---- leaks ---------------------------------------------------------------------------------------


def _tasks(source: str, *asked: tuple[str, str]) -> list[Task]:
    return [
        Task(f"{source}/{question_key(text)}", text, answer, kind="number", tier="medium", source=source)
        for text, answer in asked
    ]


def _sets() -> Cases:
    rolls, pens = "A baker fills 4 trays with 6 rolls each. How many rolls?", "Ann has 9 pens. How many?"
    test = _tasks("svamp", (rolls, "24"), (pens, "9"))
    return [
        (_tasks("svamp", ("Two and 22?", "24"), (rolls, "24")), test),
        (_tasks("gsm8k", (rolls, "24"), (f"{pens} Think twice.", "9")), test),
        (_tasks("svamp", (rolls.upper().replace(" ", "  "), "24")), test),
        (_tasks("gsm8k", ("Nothing in common?", "1")), test),
        (_tasks("gsm8k", (pens, "9"), ("Three?", "3"), (rolls, "24")), test),
    ]


def _shared(train: list[Task], test: list[Task], field: str) -> list[str]:
    known = {getattr(task, field) for task in test}
    return sorted(task.id for task in train if getattr(task, field) in known)


def _leaked(train: list[Task], test: list[Task]) -> list[str]:
    return sorted(first.id for first, _ in overlap(train, test))


leaked = Check(
    "leaked",
    _leaked,
    _sets,
    {
        "Letter by letter two texts are seldom equal. `task.key` forgets case and spaces.": (
            partial(_shared, field="question")
        ),
        "An id begins with its source, so the same question has other ids elsewhere. Compare `task.key`.": (
            partial(_shared, field="id")
        ),
        "Many questions have the same answer. Compare the questions, by `task.key`.": (
            partial(_shared, field="answer")
        ),
        "These are the questions of the test set. Give the ids of the training questions that must go.": (
            lambda train, test: sorted(second.id for _, second in overlap(train, test))
        ),
        "All leaks are found, in the order of the training set. Give them sorted.": (
            lambda train, test: [task.id for task in train if task.id in set(_leaked(train, test))]
        ),
        "There may be more than one leak: give all of them.": lambda train, test: _leaked(train, test)[:1],
        "These may stay. Give the ids of those that must go.": (
            lambda train, test: sorted(
                task.id for task in train if task.key not in {other.key for other in test}
            )
        ),
    },
)
