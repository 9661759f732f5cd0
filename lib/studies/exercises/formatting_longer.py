"""The exercises at the end of notebook 01: a loophole, lucky guesses, a program that lies."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from lib import dial
from lib.formats import parse_response, parse_response_like_arm
from lib.sandbox import run_python
from lib.studies.exercises.core import NotYetError
from lib.studies.programs import check_program
from lib.verify import is_response_correct


def _judge(name: str, given: object, problems: Mapping[str, Callable[[], bool]]) -> None:
    """Say that nothing is there yet (`...`), name the first problem, or say that it is right."""
    if given is ...:
        print(f"{name}: not answered yet")
        return
    for hint, is_wrong in problems.items():
        if is_wrong():
            raise NotYetError(f"{name}: not right yet. {hint}")
    print(f"{name}: right")


def loophole(text: str) -> None:
    """Exercise 1: paid by ARM's training rules, refused by the strict reader, without any reasoning."""
    _judge(
        "loophole",
        text,
        {
            "The strict reader accepts it: that is no loophole.": lambda: parse_response(text).is_valid,
            "ARM's reader refuses it as well. It looks for the tag at the start, for tags of other formats, "
            "and for an answer; nothing else.": lambda: not parse_response_like_arm(text).is_valid,
            "The answer is not paid: ARM's reader finds another number than 15 in it.": (
                lambda: not is_response_correct(text, "15", "number", "arm_training")
            ),
            "This reasons with the numbers of the question. Write nonsense.": (
                lambda: {"4", "6", "9", "24"} <= set(re.findall(r"\d+", text))
            ),
        },
    )


def by_guessing(expected: float, *, asked: int) -> None:
    """Exercise 2: how many of `asked` direct answers are right by guessing among ten digits."""
    _judge(
        "by_guessing",
        expected,
        {
            "That is a share. Give a number of responses.": lambda: expected <= 1 < asked / 10,
            "Guessing is right once in as many times as there are digits, not once in two or four.": (
                lambda: expected > 1.5 * asked / 10
            ),
            "Count the hard questions that were asked, and take the share that a guess gets right.": (
                lambda: abs(expected - asked / 10) > 0.5
            ),
        },
    )


def lies_well(program: str, question: dial.Question) -> None:
    """Exercise 3: a program that equation (2) keeps and that computes nothing."""
    other = dial.Question(str((int(question.start) + 1) % 10), question.operations)

    def moved() -> str:
        return program.replace(f"d = {question.start}", f"d = {other.start}", 1)

    _judge(
        "lies_well",
        program,
        {
            "Equation (2) drops it: an answer or a comment is not what the program computes.": (
                lambda: check_program(program, lambda answer: answer == question.answer) is not None
            ),
            f"It must begin with `d = {question.start}`, so that another start can be tried.": (
                lambda: moved() == program
            ),
            "With another start digit it is right, too: so it computes the answer.": (
                lambda: str(run_python(moved(), timeout=5.0).value) == other.answer
            ),
        },
    )
