"""A model with two modes, thinking and skipping it: prompts, its two first tokens, reading of responses.

The prompt ends in an open `<think>`. A response whose first token is `</think>` skips thinking.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from transformers import PreTrainedTokenizerBase

from lib.tasks import Task
from lib.verify import closing_answer, is_correct, last_boxed

OPEN, CLOSE = "<think>", "</think>"
THINKING, NOTHINKING = MODES = ("thinking", "nothinking")


@dataclass(frozen=True)
class ModeTokens:
    """How a tokenizer writes the modes: the open tag as text, and the first token of each mode as an id."""

    open: str
    close: int  # forced for NoThinking
    start: int  # forced for Thinking

    @classmethod
    def find(
        cls, tokenizer: PreTrainedTokenizerBase, *, open: str = OPEN, close: str = CLOSE, start: str = "Okay"
    ) -> Self:
        """Look the tokens up. `close` and `start` must be one token each, as they are forced as the first."""

        def one(name: str, text: str) -> int:
            ids = tokenizer(text, add_special_tokens=False).input_ids
            if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
                wrong = f"{len(ids)} tokens or unknown to this tokenizer; name a stand-in that is one token"
            elif not tokenizer.decode(ids, skip_special_tokens=True):
                wrong = "a special token here, which decoded responses lack; make it an ordinary token"
            else:
                return ids[0]
            raise ValueError(f"{name}={text!r} is {wrong}")

        found = cls(open, one("close", close), one("start", start))
        if found.close == found.start:
            raise ValueError(f"{start=} is the token of {close=}: a response forced to think would skip it")
        return found

    def is_nothinking(self, completion_ids: Sequence[int]) -> bool:
        """The mode of a response, from its first token."""
        return len(completion_ids) > 0 and completion_ids[0] == self.close

    def check_prompt(self, tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int]) -> None:
        """Raise ValueError unless the prompt ends in the open tag (white space may follow)."""
        tail = tokenizer.decode(prompt_ids[-12:])
        if not tail.rstrip().endswith(self.open):
            raise ValueError(
                f"The prompt must end in an open {self.open}, but it ends in {tail[-40:]!r}. Change the chat "
                "template so that its generation prompt ends so, or give prompts as text that do "
                "(`thinking_prompt`). Without it the model never skips thinking: nothinking_ratio stays 0."
            )


def thinking_prompt(question: str | Task, tokenizer: PreTrainedTokenizerBase) -> str:
    """The prompt as text, ending in an open think tag: by the chat template, else in ARM's frame.

    A beginning-of-text token that the template writes is left out where the tokenizer adds its own. Chat
    models break the line after the tag. The dial world does not: there a line break begins a worked line, and
    a model kept from writing its usual first word took to that, a third mode that was never sampled.
    """
    if tokenizer.chat_template is None:
        return f"{question.prompt if isinstance(question, Task) else question}{OPEN}"
    content = question.question if isinstance(question, Task) else question
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    bos = tokenizer.bos_token
    if bos and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]:
        prompt = prompt.removeprefix(bos)
    return prompt if prompt.rstrip().endswith(OPEN) else f"{prompt}{OPEN}\n"


def read_solution(response: str, *, open: str = OPEN, close: str = CLOSE) -> str | None:
    """What follows the thinking, or None where it is not closed exactly once or is opened again.

    So a response cut off while thinking has no solution, nor has one that thinks again after skipping it.
    """
    if response.count(close) != 1 or open in response:
        return None
    return response.partition(close)[2]


def solution_answer(response: str) -> str | None:
    """The answer of a response: the last box of its solution, else what its last sentence says."""
    solution = read_solution(response)
    if solution is None:
        return None
    return closing_answer(solution) if "\\boxed" not in solution else last_boxed(solution)


def is_solution_right(response: str, answer: str, kind: str) -> bool:
    """R(x, y) of the paper: the solution is there, and the last box in it (or its last sentence) is right."""
    return is_correct(solution_answer(response), answer, kind)


def read_thinking(response: str) -> tuple[str, str | None]:
    """Whether a response thinks, and its answer: how `lib.engines.ask.ask` reads a thinking model."""
    return NOTHINKING if response.startswith(CLOSE) else THINKING, solution_answer(response)


def thinking_tasks(tasks: Sequence[Task], tokenizer: PreTrainedTokenizerBase) -> list[Task]:
    """The same tasks, with prompts that end in an open think tag."""
    return [replace(task, prompt=thinking_prompt(task, tokenizer)) for task in tasks]


def with_reference(
    rows: Sequence[Mapping[str, Any]], reference: Mapping[str, Mapping[str, float]]
) -> list[dict[str, Any]]:
    """Rows with the column `reference_accuracy`, joined by question id."""
    if missing := [row["id"] for row in rows if row["id"] not in reference]:
        lack = f"{len(missing)} of {len(rows)} questions have no reference samples, {missing[0]} for one"
        raise ValueError(f"{lack}; run sample_reference on all of them")
    return [{**row, "reference_accuracy": reference[row["id"]]["accuracy"]} for row in rows]
