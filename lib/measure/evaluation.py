"""Measure a policy: accuracy and tokens with intervals, the oracle beside it, and what a state tells."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lib.engines.generate import generate
from lib.formats import ReasoningFormat, parse_response
from lib.measure.intervals import mean_interval, wilson_interval
from lib.measure.modes import Answer
from lib.tasks import Task
from lib.thinking import CLOSE, is_solution_right
from lib.verify import is_correct


def is_right(answer: str | None, task: Task) -> bool:
    """Whether an answer is the reference answer, as the kind of the question wants it; words otherwise."""
    return is_correct(answer, task.answer, getattr(task, "kind", "text"))


def tagged_answer(text: str) -> str | None:
    """The answer of a valid tagged response, or None."""
    parsed = parse_response(text)
    return parsed.answer if parsed.is_valid else None


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Task],
    *,
    prefix: str = "",
    read_answer: Callable[[str], str | None] = tagged_answer,
    max_new_tokens: int = 160,
    temperature: float = 0.0,
    seed: int = 0,
) -> pd.DataFrame:
    """Ask every question once: a row each with tier, depth, response, answer, correct, tokens, truncated.

    `read_answer` finds the answer in a response.
    """
    responses = generate(
        model,
        tokenizer,
        [question.prompt for question in questions],
        prefix=prefix,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
    )
    answers = [read_answer(response.text) for response in responses]
    return pd.DataFrame(
        {
            "tier": [question.tier for question in questions],
            "depth": [getattr(question, "depth", None) for question in questions],
            "response": [response.text for response in responses],
            "answer": answers,
            "correct": [
                is_right(answer, question) for answer, question in zip(answers, questions, strict=True)
            ],
            "tokens": [response.num_tokens for response in responses],
            "truncated": [response.is_truncated for response in responses],
        }
    )


def summarise(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Accuracy (Wilson) and mean tokens (normal) with 95 % intervals, for each group of rows."""

    def line(group: pd.DataFrame) -> pd.Series:
        low, high = wilson_interval(int(group["correct"].sum()), len(group))
        tokens_low, tokens_high = mean_interval(group["tokens"])
        return pd.Series(
            {
                "accuracy": group["correct"].mean(),
                "accuracy_low": low,
                "accuracy_high": high,
                "tokens": group["tokens"].mean(),
                "tokens_low": tokens_low,
                "tokens_high": tokens_high,
                "count": len(group),
            }
        )

    return rows.groupby(list(by), sort=False)[["correct", "tokens"]].apply(line).reset_index()


def format_shares(answers: Sequence[Answer], tiers: Sequence[str]) -> pd.DataFrame:
    """The share of each format among the answers of a tier: tiers x (formats, invalid), rows sum to 1.

    An invalid response counts as invalid, whatever tag it opens with.
    """
    columns = [*(format.value for format in ReasoningFormat), "invalid"]
    used = ["invalid" if answer.answer is None else answer.format.value for answer in answers]
    counts = pd.DataFrame({"tier": tiers, "format": used}).groupby("tier", sort=False)["format"]
    return (
        counts.value_counts(normalize=True).unstack(fill_value=0.0).reindex(columns=columns, fill_value=0.0)
    )


def valid_share(answers: Sequence[Answer]) -> tuple[float, float, float]:
    """The share of valid responses, and its 95 % Wilson interval: (share, low, high)."""
    valid = sum(answer.answer is not None for answer in answers)
    low, high = wilson_interval(valid, len(answers))
    return valid / len(answers), low, high


def evaluate_formats(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Task],
    *,
    max_new_tokens: int = 160,
) -> pd.DataFrame:
    """The rows of `evaluate`, greedy and once in each format, with the format in a column."""
    return pd.concat(
        [
            evaluate(model, tokenizer, questions, prefix=format.prefix, max_new_tokens=max_new_tokens).assign(
                format=format.value
            )
            for format in ReasoningFormat
        ],
        ignore_index=True,
    )


def format_report(
    answers: Sequence[Answer], questions: Sequence[Task], forced: pd.DataFrame
) -> dict[str, Any]:
    """How a policy uses its formats and how far each one reaches, as numbers for a summary.

    From what it answered to `questions` as it liked: share of valid responses, shares of the formats per
    tier, accuracy, mean tokens. From `evaluate_formats`: accuracy by depth, or by tier without depths.
    """
    valid, low, high = valid_share(answers)
    shares = format_shares(answers, [question.tier for question in questions])
    correct = [is_right(given.answer, question) for given, question in zip(answers, questions, strict=True)]
    level = "depth" if forced["depth"].notna().all() else "tier"
    rates = forced.groupby(["format", level], sort=False)["correct"].mean()
    return {
        "valid_share": valid,
        "valid_interval": [low, high],
        "format_share": {tier: row.to_dict() for tier, row in shares.iterrows()},
        "accuracy": sum(correct) / len(correct),
        "mean_tokens": sum(given.num_tokens for given in answers) / len(answers),
        f"accuracy_by_{level}": {
            format.value: rates[format].sort_index().tolist() if level == "depth" else rates[format].to_dict()
            for format in ReasoningFormat
        },
        "questions": [len(questions), len(forced) // len(ReasoningFormat)],
    }


def policy_rows(answers: Sequence[Answer], questions: Sequence[Task]) -> pd.DataFrame:
    """A row for each answer: tier, depth, format ("invalid" where it is), answer, correct, tokens."""
    return pd.DataFrame(
        {
            "tier": [question.tier for question in questions],
            "depth": [getattr(question, "depth", None) for question in questions],
            "format": ["invalid" if a.answer is None else a.format.value for a in answers],
            "answer": [a.answer for a in answers],
            "correct": [is_right(a.answer, q) for a, q in zip(answers, questions, strict=True)],
            "tokens": [a.num_tokens for a in answers],
        }
    )


def policy_summary(rows: pd.DataFrame) -> dict[str, Any]:
    """Accuracy, mean tokens and format shares of `policy_rows`, in all and per tier, for a metrics file."""

    def numbers(part: pd.DataFrame) -> dict[str, float]:
        return {"accuracy": float(part["correct"].mean()), "mean_tokens": float(part["tokens"].mean())}

    names = [*(format.value for format in ReasoningFormat), "invalid"]
    tiers = {
        tier: numbers(part)
        | {"format_share": {name: float(part["format"].eq(name).mean()) for name in names}}
        for tier, part in rows.groupby("tier", sort=False)
    }
    return numbers(rows) | {"tiers": tiers, "questions": len(rows)}


def probe_accuracy(states: torch.Tensor, labels: Sequence[str], *, train_share: float = 0.5) -> float:
    """Accuracy of a linear probe that reads labels from states (N, D): fitted on the first rows only."""
    cut = int(len(labels) * train_share)
    if not 0 < cut < len(labels):
        raise ValueError(
            f"train_share {train_share} leaves no rows to fit or none to score, of {len(labels)}"
        )
    mean, deviation = states[:cut].mean(0), states[:cut].std(0).clamp_min(1e-6)
    scaled = ((states - mean) / deviation).numpy()
    probe = LogisticRegression(max_iter=2000).fit(scaled[:cut], labels[:cut])
    return float(probe.score(scaled[cut:], labels[cut:]))


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
