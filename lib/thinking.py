"""A model with two modes, thinking and skipping it: prompts, reading of responses, samples, measuring.

The prompt ends in an open `<think>`. A response whose first token is `</think>` skips thinking.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lib.data import Example
from lib.dial import Question, dial_vocabulary, monologue, untagged_answer, untagged_response
from lib.formats import ReasoningFormat
from lib.inference import generate
from lib.rows import last_boxed
from lib.sft import SFTConfig
from lib.teachers import dial_example
from lib.verify import is_correct

OPEN, CLOSE = "<think>", "</think>"


# ---- modes -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModeTokens:
    """How a tokenizer writes the modes: the open tag as text, and the first token of each mode as an id."""

    open: str
    close: int  # forced for NoThinking
    start: int  # forced for Thinking

    @classmethod
    def find(
        cls, tokenizer: PreTrainedTokenizerBase, *, open: str = OPEN, close: str = CLOSE, start: str = "Okay"
    ) -> ModeTokens:
        """Look the tokens up. `close` and `start` must be one token each, as they are forced as the first."""

        def one(name: str, text: str) -> int:
            ids = tokenizer(text, add_special_tokens=False).input_ids
            if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
                raise ValueError(
                    f"{name}={text!r} is {len(ids)} tokens or unknown to this tokenizer; name a stand-in "
                    "that is one token"
                )
            if not tokenizer.decode(ids, skip_special_tokens=True):
                raise ValueError(
                    f"{name}={text!r} is a special token here, so it vanishes from decoded responses; "
                    "make it an ordinary token"
                )
            return ids[0]

        return cls(open, one("close", close), one("start", start))

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


def thinking_prompt(question: str | Example, tokenizer: PreTrainedTokenizerBase) -> str:
    """The prompt as text, ending in an open think tag: by the chat template, else in ARM's frame.

    A beginning-of-text token that the template writes is left out where the tokenizer adds its own. Chat
    models break the line after the tag. The dial world does not: there a line break begins a worked line, and
    a model kept from writing its usual first word took to that, a third mode that was never sampled.
    """
    if tokenizer.chat_template is None:
        return f"{question.prompt if isinstance(question, Example) else question}{OPEN}"
    content = question.question if isinstance(question, Example) else question
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


def is_solution_right(response: str, answer: str, kind: str) -> bool:
    """R(x, y) of the paper: the solution is there, and the last box in it (or its last sentence) is right."""
    solution = read_solution(response)
    if solution is None:
        return False
    found = untagged_answer(solution) if "\\boxed" not in solution else last_boxed(solution)
    return is_correct(found, answer, kind)


# ---- data --------------------------------------------------------------------------------------


def question_rows(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Rows to train or to ask: id, prompt, answer, kind and tier of each example."""
    return [
        {
            "id": example.id,
            "prompt": thinking_prompt(example, tokenizer),
            "answer": example.answer,
            "kind": example.kind,
            "tier": example.tier,
        }
        for example in examples
    ]


def dial_rows(questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """`question_rows` of dial questions, with their depth."""
    rows = question_rows([dial_example(question) for question in questions], tokenizer)
    return [row | {"depth": question.depth} for row, question in zip(rows, questions, strict=True)]


def thinker_rows(questions: Sequence[Question], *, seed: int = 0) -> list[dict[str, str]]:
    """SFT rows that make dial-thinker: it thinks at length, and could do without.

    In the second row of each question `</think>` belongs to the prompt, so it is not in the loss: the model
    learns to answer after it and never learns to write it first. In the third another word stands there, and
    the thought goes on after it. So every first word but `</think>` begins a thought, as in real models.
    """
    words = [word for word in dial_vocabulary() if word.strip() and "<" not in word]
    rng = random.Random(f"thinker|{seed}")
    rows = []
    for question in questions:
        prompt = question.prompt + OPEN
        conclusion = f"\n{untagged_response(question, ReasoningFormat.DIRECT)}"
        thought = f"{monologue(question)}\n{CLOSE}{conclusion}"
        rows.append({"prompt": prompt, "completion": thought})
        solution = f"\n{untagged_response(question, ReasoningFormat.SHORT_COT)}"
        rows.append({"prompt": prompt + CLOSE, "completion": solution})
        rows.append({"prompt": f"{prompt}{rng.choice(words)}", "completion": f" {thought}"})
    rng.shuffle(rows)
    return rows


def thinker_config(seed: int = 0) -> SFTConfig:
    """How dial-thinker is made from dial-base."""
    return replace(
        SFTConfig.cpu(),
        method="full",
        learning_rate=1e-3,
        max_steps=400,
        weighting="response",
        new_tokens={},
        save_every=200,
        seed=seed,
    )


def sample_reference(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    path: Path,
    *,
    samples: int = 16,
    temperature: float = 1.0,
    max_new_tokens: int = 160,
    seed: int = 0,
    questions_at_once: int = 64,
    say: Callable[[str], None] | None = None,
) -> dict[str, dict[str, float]]:
    """How the reference fares on each question, by id: accuracy, mean tokens, truncated share, samples.

    One JSON line a question is appended to `path`, so a stopped call goes on where it was. A file made with
    other settings is refused.
    """
    settings = {
        "samples": samples,
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
    }
    found = _read_reference(path, settings)
    todo = [row for row in {row["id"]: row for row in rows}.values() if row["id"] not in found]
    path.parent.mkdir(parents=True, exist_ok=True)
    if not found:
        path.write_text(json.dumps({"settings": settings}) + "\n", encoding="utf-8")
    for first in range(0, len(todo), questions_at_once):
        chosen = todo[first : first + questions_at_once]
        responses = generate(
            model,
            tokenizer,
            [row["prompt"] for row in chosen for _ in range(samples)],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed + len(found),
        )
        lines = []
        for index, row in enumerate(chosen):
            mine = responses[index * samples : (index + 1) * samples]
            found[row["id"]] = {
                "accuracy": sum(is_solution_right(r.text, row["answer"], row["kind"]) for r in mine)
                / samples,
                "mean_tokens": sum(r.num_tokens for r in mine) / samples,
                "truncated": sum(r.is_truncated for r in mine) / samples,
                "samples": samples,
            }
            lines.append(json.dumps({"id": row["id"], **found[row["id"]]}) + "\n")
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))
        if say is not None:
            say(f"{len(found)} questions sampled, {len(todo) - first - len(chosen)} to go")
    return found


def _read_reference(path: Path, settings: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """What an earlier call stored; a last line cut short is dropped from the file."""
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
        path.write_text("".join(lines), encoding="utf-8")
    stored = [json.loads(line) for line in lines]
    if stored and stored[0] != {"settings": dict(settings)}:
        raise ValueError(
            f"{path} was made with {stored[0].get('settings')}, not with {dict(settings)}; delete it or "
            "name another file"
        )
    return {row.pop("id"): row for row in stored[1:]}


def with_reference(
    rows: Sequence[Mapping[str, Any]], reference: Mapping[str, Mapping[str, float]]
) -> list[dict[str, Any]]:
    """Rows with the column `reference_accuracy`, joined by question id."""
    if missing := [row["id"] for row in rows if row["id"] not in reference]:
        raise ValueError(
            f"{len(missing)} of {len(rows)} questions have no reference samples, {missing[0]} for one; "
            "run sample_reference on all of them"
        )
    return [{**row, "reference_accuracy": reference[row["id"]]["accuracy"]} for row in rows]


# ---- measuring ---------------------------------------------------------------------------------


def respond(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    *,
    prefix: str = "",
    max_new_tokens: int = 160,
    temperature: float = 1.0,
    seed: int = 0,
) -> pd.DataFrame:
    """Ask every question once, free or after a forced `prefix` (`</think>` skips thinking): a row each.

    Columns: id, tier, depth if known, response, correct, tokens (the prefix counts), truncated, nothinking.
    """
    responses = generate(
        model,
        tokenizer,
        [row["prompt"] for row in rows],
        prefix=prefix,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
    )
    return pd.DataFrame(
        {
            "id": row["id"],
            "tier": row["tier"],
            "depth": row.get("depth"),
            "response": response.text,
            "correct": is_solution_right(response.text, row["answer"], row["kind"]),
            "tokens": response.num_tokens,
            "truncated": response.is_truncated,
            "nothinking": response.text.startswith(CLOSE),
        }
        for row, response in zip(rows, responses, strict=True)
    )


def thinking_summary(rows: pd.DataFrame) -> dict[str, Any]:
    """Accuracy, mean tokens and NoThinking ratio of the rows of `respond`: in all, per tier and per depth."""

    def numbers(group: pd.DataFrame) -> dict[str, float]:
        return {
            "accuracy": float(group["correct"].mean()),
            "mean_tokens": float(group["tokens"].mean()),
            "nothinking_ratio": float(group["nothinking"].mean()),
        }

    summary = numbers(rows) | {"tiers": {tier: numbers(g) for tier, g in rows.groupby("tier", sort=False)}}
    if rows["depth"].notna().all():
        summary["depths"] = {str(depth): numbers(group) for depth, group in rows.groupby("depth")}
    return summary


# Words that say that one is thinking on. The paper names the first two; its list is not published.
IMPLICIT = re.compile(r"\b(wait|alternatively|hmm|let me|let's check|double-check|on second thought)\b", re.I)


def thinks_implicitly(response: str) -> bool:
    """Whether a solution goes on thinking after `</think>` (section 4.4 of the paper)."""
    return bool(IMPLICIT.search(response.partition(CLOSE)[2]))
