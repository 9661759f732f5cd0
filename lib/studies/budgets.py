"""Notebook 04: a limit in tokens. What is longer is cut there and closed, and its answer is forced."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from lib.engines.ask import Policy, Response, as_engine, read_tagged, respond, score
from lib.engines.base import Engine, Sampling
from lib.formats import ReasoningFormat, detect_format
from lib.tasks import Rollout, Task

ANSWER_ROOM = 16  # tokens for an answer that is forced


def cut_and_close(
    policy: Policy, tasks: Sequence[Task], whole: Sequence[Rollout], budget: int, sampling: Sampling
) -> list[Rollout]:
    """The responses to each task with a budget in tokens, from `whole` ones: the same up to the limit.

    The tokens of the closing and of the answer are counted too, so they come on top of the budget.
    """
    if budget < 1:
        raise ValueError(f"budget must be 1 token or more, got {budget}")
    engine = as_engine(policy)
    cut = [_cut(engine.tokenizer, rollout, budget) for rollout in whole]
    closed = _force_answers(engine, [task.prompt for task in tasks], cut, sampling)
    return [
        score(
            task,
            one,
            read_tagged,
            mode=f"budget_{budget}",
            **{name: getattr(given, name) for name in ("seed", "method", "sample")},
        )
        for task, one, given in zip(tasks, closed, whole, strict=True)
    ]


def close_response(text: str) -> str:
    """A response that was cut off, up to where its answer begins: what is open is closed."""
    format = detect_format(text)
    if format is None or format is ReasoningFormat.DIRECT or "<ANSWER>" in text:
        return text
    reasoning = text.rstrip().removesuffix(f"</{format.tag}>").rstrip()
    return f"{reasoning}\n</{format.tag}>\n{ReasoningFormat.DIRECT.prefix}"


def _cut(tokenizer: PreTrainedTokenizerBase, rollout: Rollout, budget: int) -> Response:
    if rollout.tokens <= budget:
        return Response(rollout.text, rollout.tokens, rollout.truncated)
    ids = tokenizer(rollout.text, add_special_tokens=False).input_ids[:budget]
    return Response(str(tokenizer.decode(ids)), budget, truncated=True)


def _force_answers(
    engine: Engine, prompts: Sequence[str], responses: Sequence[Response], sampling: Sampling
) -> list[Response]:
    """Close the responses that are cut off, and let the policy write the answer right there."""
    cut = [place for place, response in enumerate(responses) if response.truncated]
    closed = [close_response(responses[place].text) for place in cut]
    asked = [prompts[place] + text for place, text in zip(cut, closed, strict=True)]
    keys = [(prompt, place) for place, prompt in enumerate(asked)]
    forced = respond(engine, asked, max_new_tokens=ANSWER_ROOM, sampling=sampling, keys=keys)
    found = list(responses)
    for place, text, end in zip(cut, closed, forced, strict=True):
        tokens = len(engine.tokenizer(text, add_special_tokens=False).input_ids) + end.tokens
        found[place] = Response(f"{text}{end.text}", tokens, end.truncated)
    return found
