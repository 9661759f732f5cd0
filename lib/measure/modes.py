"""The ways to ask a policy that can answer in several formats: one format, all of them, votes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import eq
from typing import Any, Protocol

from lib.engines.ask import Policy, as_engine, ask
from lib.formats import ReasoningFormat
from lib.tasks import Rollout, Task, question_key

MODES = ("adaptive", *(format.value for format in ReasoningFormat), "consensus", "majority")
SHORT_FORMATS = (ReasoningFormat.DIRECT, ReasoningFormat.SHORT_COT, ReasoningFormat.CODE)
Ask = Callable[[Sequence[Task], str], list[Rollout]]


class Prompted(Protocol):
    """Whatever brings its prompt; without a kind it can be asked, and not be scored."""

    @property
    def prompt(self) -> str: ...


def answer(
    policy: Policy,
    questions: Sequence[str | Prompted],
    mode: str = "adaptive",
    *,
    samples: int = 8,
    max_new_tokens: int = 160,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    equal: Callable[[str, str], bool] = eq,
    method: str = "",
) -> list[Rollout]:
    """Ask each question, in order; the policy picks the format, or `mode` names it (ARM, section 4.4).

    "consensus" asks in the three short formats, and in long CoT where they do not all agree. "majority" takes
    the most frequent answer of `samples` adaptive responses. A question is a `Task`; text is put into ARM's
    frame, and is neither right nor wrong. Temperature 0 is greedy. `equal` compares two answers (see
    `lib.verify`).
    """
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}; there are {', '.join(MODES)}")
    if isinstance(questions, str):
        raise TypeError("questions must be a list; put the one question into [ ]")
    if mode == "majority" and (temperature == 0 or samples < 1):
        raise ValueError(
            "majority needs samples of 1 or more and a temperature above 0: greedy votes are equal"
        )
    engine, tasks = as_engine(policy), [_as_task(question) for question in questions]

    def asked(chosen: Sequence[Task], prefix: str) -> list[Rollout]:
        named: dict[str, Any] = {"method": method, "mode": mode, "temperature": temperature}
        named |= {"top_p": top_p, "seed": seed, "max_new_tokens": max_new_tokens}
        return ask(engine, chosen, prefix=prefix, **named)

    if mode == "consensus":
        return _by_consensus(asked, tasks, equal)
    if mode == "majority":
        votes = asked([task for task in tasks for _ in range(samples)], "")
        ballots = [votes[first : first + samples] for first in range(0, len(votes), samples)]
        return [_by_majority(ballot, equal) for ballot in ballots]
    return asked(tasks, "" if mode == "adaptive" else ReasoningFormat(mode).prefix)


def _as_task(question: str | Prompted) -> Task:
    if isinstance(question, Task):
        return question
    text, prompt = (question, "") if isinstance(question, str) else (question.prompt, question.prompt)
    return Task(question_key(text), text, answer="", kind="text", tier="", source="", prompt=prompt)


def consensus(
    direct: str | None,
    short_cot: str | None,
    code: str | None,
    long_cot: str | None,
    *,
    equal: Callable[[str, str], bool] = eq,
) -> tuple[str | None, bool]:
    """The answer and whether it is long CoT's: the short formats' where all three agree (ARM, section 4.4).

    An answer that could not be read (None) agrees with nothing.
    """
    if _all_equal([direct, short_cot, code], equal):
        return direct, False
    return long_cot, True


def _all_equal(answers: Sequence[str | None], equal: Callable[[str, str], bool]) -> bool:
    read = [answer for answer in answers if answer is not None]
    return len(read) == len(answers) and all(equal(read[0], answer) for answer in read[1:])


def _by_consensus(asked: Ask, tasks: Sequence[Task], equal: Callable[[str, str], bool]) -> list[Rollout]:
    """Long CoT is asked only where it is needed; the tokens of all that was written are summed."""
    short = list(zip(*(asked(tasks, format.prefix) for format in SHORT_FORMATS), strict=True))
    split = [i for i, given in enumerate(short) if not _all_equal([a.answer for a in given], equal)]
    long = dict(zip(split, asked([tasks[i] for i in split], ReasoningFormat.LONG_COT.prefix), strict=True))
    found = []
    for place, given in enumerate(short):
        last = long.get(place, given[0])
        tokens = sum(a.tokens for a in given) + (last.tokens if place in long else 0)
        found.append(replace(last, sample=given[0].sample, tokens=tokens, agreed=place not in long))
    return found


def majority_vote(answers: Sequence[str | None], *, equal: Callable[[str, str], bool] = eq) -> str | None:
    """The answer that most others equal; the first of them where several do. None does not vote."""
    read = [answer for answer in answers if answer is not None]
    return max(read, key=lambda answer: sum(equal(answer, other) for other in read), default=None)


def _by_majority(votes: Sequence[Rollout], equal: Callable[[str, str], bool]) -> Rollout:
    """The first response with the winning answer, with the tokens of all votes."""
    winner = majority_vote([vote.answer for vote in votes], equal=equal)
    chosen = next(vote for vote in votes if vote.answer == winner)
    agreed = _all_equal([vote.answer for vote in votes], equal)
    sample = votes[0].sample // len(votes)
    return replace(chosen, sample=sample, tokens=sum(vote.tokens for vote in votes), agreed=agreed)
