"""Notebook 01: who writes the responses of an SFT set (ARM, section 4.1, appendix B).

The dial world's exact rationales, the dataset's own solutions, or a chat server. A teacher takes
tasks, each an example and a format, and gives a reply for each: a tagged response, or why not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lib.dial.responses import UNTAGGED_PREFIX, gold_response, read_untagged, untagged_answer
from lib.dial.world import parse_question
from lib.engines.ask import Policy, ask
from lib.engines.server import ChatServer
from lib.formats import ReasoningFormat, render_response
from lib.tasks import Task


@dataclass(frozen=True)
class Reply:
    """A teacher's tagged response, or why there is none."""

    text: str | None
    problem: str | None = None


Assignment = tuple[Task, ReasoningFormat]
Teacher = Callable[[Sequence[Assignment]], list[Reply]]


def dial_teacher(tasks: Sequence[Assignment]) -> list[Reply]:
    """The exact responses of the dial world."""
    return [Reply(gold_response(parse_question(example.question), format)) for example, format in tasks]


def base_teacher(policy: Policy, *, temperature: float, seed: int) -> Teacher:
    """A dial base model as a teacher that errs: its own samples in each style, laid out as ARM does."""

    def teach(tasks: Sequence[Assignment]) -> list[Reply]:
        replies: dict[int, Reply] = {}
        for format in ReasoningFormat:
            chosen = [i for i, (_, wanted) in enumerate(tasks) if wanted is format]
            begun: dict[str, Any] = {"prefix": UNTAGGED_PREFIX[format], "read": read_untagged}
            questions = [tasks[i][0] for i in chosen]
            rollouts = ask(policy, questions, **begun, temperature=temperature, seed=seed)
            replies |= {i: lay_out(format, r.text) for i, r in zip(chosen, rollouts, strict=True)}
        return [replies[i] for i in range(len(tasks))]

    return teach


def lay_out(format: ReasoningFormat, text: str) -> Reply:
    """An untagged response in ARM's layout; a response without a conclusion cannot be used."""
    rationale, _, _ = text.rpartition("It shows")
    answer, bare = untagged_answer(text), not rationale.strip()
    if answer is None or bare != (format is ReasoningFormat.DIRECT):
        return Reply(None, "no answer in the response")
    return _rendered(format, rationale.strip(), answer)


def dataset_teacher(tasks: Sequence[Assignment]) -> list[Reply]:
    """What the dataset has: the answer as direct, and its rationale in the format it is written in."""
    replies = []
    for example, format in tasks:
        if format is not ReasoningFormat.DIRECT and format is not example.format:
            replies.append(Reply(None, f"{example.source} has no {format} rationale"))
            continue
        rationale = "" if format is ReasoningFormat.DIRECT else example.rationale or ""
        replies.append(_rendered(format, rationale, example.answer))
    return replies


_LAYOUTS = {
    ReasoningFormat.DIRECT: "Answer at once, without any reasoning.\n\n<ANSWER>\n{answer}\n</ANSWER>",
    ReasoningFormat.SHORT_COT: "Reason in a few short sentences.\n\n"
    "<COT>\nthe reasoning\n</COT>\n<ANSWER>\n{answer}\n</ANSWER>",
    ReasoningFormat.CODE: "Write a Python function that returns a dictionary with the values that matter on "
    "the way and, last, the key 'answer'. Then show the call, and work out yourself what it returns.\n\n"
    "<CODE>\ndef solve():\n    first = 2 * 3\n    return {{'first': first, 'answer': first + 1}}\n\n"
    ">>> solve()\n\noutput = {{\n    'first': 6,\n    'answer': 7\n}}\n</CODE>\n"
    "<ANSWER>\n{answer}\n</ANSWER>",
}
_THOUGHT = re.compile(r"<think>(.*?)</think>", re.DOTALL)
_ANSWER = re.compile(r"<ANSWER>\s*(.*?)\s*</ANSWER>\s*$", re.DOTALL)
_FENCE = re.compile(r"^```\w*\n", re.MULTILINE)


def chat_teacher(
    server: ChatServer,
    *,
    temperature: float = 0.6,
    max_tokens: int = 8192,
    show: Callable[[str], None] = print,
) -> Teacher:
    """Responses by a chat server. Unlike the paper's, our prompts never show the reference answer.

    For long CoT the model's thinking is the rationale, where the server returns it or the text holds it.
    `max_tokens` is the same for all formats: a reasoning model thinks as long before it writes a program.
    """

    def teach(tasks: Sequence[Assignment]) -> list[Reply]:
        requests = [
            {
                "messages": [{"role": "user", "content": teacher_prompt(example, format)}],
                "temperature": temperature,
                "max_tokens": max_tokens,
            }
            for example, format in tasks
        ]
        replies = []
        for (_, format), reply in zip(tasks, server.ask(requests, show=show), strict=True):
            if reply.text is None:
                replies.append(Reply(None, reply.problem))
            elif format is ReasoningFormat.LONG_COT:
                replies.append(_long_cot(reply.text, reply.reasoning))
            else:
                replies.append(Reply(_FENCE.sub("", reply.text).replace("\n```", "").strip()))
        return replies

    return teach


def teacher_prompt(example: Task, format: ReasoningFormat) -> str:
    """What a chat model is asked, to get a response in one format."""
    answer = "the letter of the option" if example.kind == "choice" else "the answer alone"
    if format is ReasoningFormat.LONG_COT:
        return f"{example.question}\n\nPut {answer} between <ANSWER> and </ANSWER>, at the very end."
    layout = _LAYOUTS[format].format(answer=answer)
    order = "Reply in exactly the layout that follows, and write nothing outside it."
    return f"{example.question}\n\n{order} {layout}"


def _long_cot(text: str, reasoning: str) -> Reply:
    """A reasoning model's reply as a long CoT response."""
    answer = _ANSWER.search(text)
    if answer is None:
        return Reply(None, "the reply does not end with an <ANSWER> block")
    thought = _THOUGHT.search(text)
    written = text[: answer.start()].replace("<LONG_COT>", "").replace("</LONG_COT>", "")
    return _rendered(
        ReasoningFormat.LONG_COT, reasoning.strip() or (thought[1] if thought else written).strip(), answer[1]
    )


def _rendered(format: ReasoningFormat, rationale: str, answer: str) -> Reply:
    try:
        return Reply(render_response(format, rationale, answer))
    except ValueError as error:
        return Reply(None, str(error))
