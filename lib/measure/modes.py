"""Ask a policy: answers in a chosen format, batched generation, and the state it decides from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import eq
from typing import Any, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lib.engines.generate import Response, generate
from lib.formats import ReasoningFormat, detect_format, parse_response
from lib.tasks import FRAME

MODES = ("adaptive", *(format.value for format in ReasoningFormat), "consensus", "majority")
SHORT_FORMATS = (ReasoningFormat.DIRECT, ReasoningFormat.SHORT_COT, ReasoningFormat.CODE)
ANSWER_ROOM = 16  # tokens for an answer that is forced


class Prompted(Protocol):
    """A question that brings its prompt; dial questions and real ones do."""

    prompt: str


@dataclass(frozen=True)
class Answer:
    """What a policy answered, in which format, at which cost in tokens (see `Response`).

    `answer` is None where the response is not valid; `format` is then the one it opens with, if any.
    `num_tokens` sums all responses that were written to find the answer. `agreed` says whether the short
    formats agreed (consensus) or all votes (majority), and is None in the other modes.
    """

    answer: str | None
    format: ReasoningFormat | None
    text: str
    num_tokens: int
    is_truncated: bool
    agreed: bool | None = None


def answer(
    policy: tuple[PreTrainedModel, PreTrainedTokenizerBase],
    questions: Sequence[str | Prompted],
    mode: str = "adaptive",
    *,
    samples: int = 8,
    budget: int | None = None,
    max_new_tokens: int = 160,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 256,
    equal: Callable[[str, str], bool] = eq,
) -> list[Answer]:
    """Ask each question, in order; the policy picks the format, or `mode` names it (ARM, section 4.4).

    "consensus" asks in the three short formats, and in long CoT where they do not all agree. "majority" takes
    the most frequent answer of `samples` adaptive responses. With a `budget` a response that is not finished
    after so many tokens is closed, and its answer forced. A question is text, which is put into ARM's frame,
    or an object with its prompt. Temperature 0 is greedy. `equal` compares two answers (see `lib.verify`).
    """
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}; there are {', '.join(MODES)}")
    if isinstance(questions, str):
        raise TypeError("questions must be a list; put the one question into [ ]")
    if budget is not None and budget < 1:
        raise ValueError(f"budget must be 1 token or more, or None, got {budget}")
    if mode == "majority" and (temperature == 0 or samples < 1):
        raise ValueError(
            "majority needs samples of 1 or more and a temperature above 0: greedy votes are equal"
        )
    options = {"temperature": temperature, "seed": seed, "batch_size": batch_size}
    prompts = [FRAME.format(question=q) if isinstance(q, str) else q.prompt for q in questions]

    def ask(asked: Sequence[str], prefix: str) -> list[Answer]:
        limit = budget or max_new_tokens
        responses = generate(*policy, asked, prefix=prefix, max_new_tokens=limit, **options)
        if budget:
            responses = force_answers(policy, asked, responses, **options)
        return [_read_answer(response) for response in responses]

    if mode == "consensus":
        return _by_consensus(ask, prompts, equal)
    if mode == "majority":
        votes = ask([prompt for prompt in prompts for _ in range(samples)], "")
        return [
            _by_majority(votes[first : first + samples], equal) for first in range(0, len(votes), samples)
        ]
    return ask(prompts, "" if mode == "adaptive" else ReasoningFormat(mode).prefix)


def _read_answer(response: Response) -> Answer:
    parsed = parse_response(response.text)
    found = parsed.answer if parsed.is_valid else None
    return Answer(found, parsed.format, response.text, response.num_tokens, response.is_truncated)


# ---- several responses to one question -----------------------------------------------------------


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
    return all(a is not None for a in answers) and all(equal(answers[0], a) for a in answers[1:])


def _by_consensus(
    ask: Callable[[Sequence[str], str], list[Answer]],
    prompts: Sequence[str],
    equal: Callable[[str, str], bool],
) -> list[Answer]:
    """Long CoT is asked only where it is needed; the tokens of all that was written are summed."""
    short = list(zip(*(ask(prompts, format.prefix) for format in SHORT_FORMATS), strict=True))
    split = [i for i, given in enumerate(short) if not _all_equal([a.answer for a in given], equal)]
    long = dict(zip(split, ask([prompts[i] for i in split], ReasoningFormat.LONG_COT.prefix), strict=True))
    found = []
    for place, given in enumerate(short):
        last = long.get(place, given[0])
        chosen, used_long = consensus(*(a.answer for a in given), last.answer, equal=equal)
        tokens = sum(a.num_tokens for a in given) + (last.num_tokens if used_long else 0)
        found.append(replace(last, answer=chosen, num_tokens=tokens, agreed=not used_long))
    return found


def majority_vote(answers: Sequence[str | None], *, equal: Callable[[str, str], bool] = eq) -> str | None:
    """The answer that most others equal; the first of them where several do. None does not vote."""
    read = [answer for answer in answers if answer is not None]
    return max(read, key=lambda answer: sum(equal(answer, other) for other in read), default=None)


def _by_majority(votes: Sequence[Answer], equal: Callable[[str, str], bool]) -> Answer:
    """The first response with the winning answer, with the tokens of all votes."""
    winner = majority_vote([vote.answer for vote in votes], equal=equal)
    chosen = next(vote for vote in votes if vote.answer == winner)
    tokens = sum(vote.num_tokens for vote in votes)
    return replace(chosen, num_tokens=tokens, agreed=_all_equal([vote.answer for vote in votes], equal))


# ---- a budget ------------------------------------------------------------------------------------


def force_answers(
    policy: tuple[PreTrainedModel, PreTrainedTokenizerBase],
    prompts: Sequence[str],
    responses: Sequence[Response],
    **options: Any,
) -> list[Response]:
    """Close the responses that are cut off, and let the policy write the answer right there.

    The tokens of the closing and of the answer are counted too, so they come on top of the budget.
    """
    model, tokenizer = policy
    cut = [place for place, response in enumerate(responses) if response.is_truncated]
    closed = [close_response(responses[place].text) for place in cut]
    forced = generate(
        model,
        tokenizer,
        [prompts[place] + text for place, text in zip(cut, closed, strict=True)],
        max_new_tokens=ANSWER_ROOM,
        **options,
    )
    found = list(responses)
    for place, text, end in zip(cut, closed, forced, strict=True):
        tokens = len(tokenizer(text, add_special_tokens=False).input_ids) + end.num_tokens
        found[place] = Response(f"{text}{end.text}", tokens, end.is_truncated)
    return found


def close_response(text: str) -> str:
    """A response that was cut off, up to where its answer begins: what is open is closed."""
    format = detect_format(text)
    if format is None or format is ReasoningFormat.DIRECT or "<ANSWER>" in text:
        return text
    reasoning = text.rstrip().removesuffix(f"</{format.tag}>").rstrip()
    return f"{reasoning}\n</{format.tag}>\n{ReasoningFormat.DIRECT.prefix}"
