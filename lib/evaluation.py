"""Measure a policy: accuracy and tokens with intervals, the oracle beside it, and what a state tells."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lib.dial import oracle_format, token_cost
from lib.formats import ReasoningFormat, parse_response
from lib.inference import Answer, generate

Z95 = 1.959964


class Task(Protocol):
    """What an evaluation needs of a question; dial questions and real ones have it."""

    prompt: str
    answer: str
    tier: str


def wilson_interval(successes: int, count: int, z: float = Z95) -> tuple[float, float]:
    """The Wilson score interval of a rate; it stays inside [0, 1] and is honest at 0 and at 1."""
    if not 0 <= successes <= count or count == 0:
        raise ValueError(f"need 0 <= successes <= count and count > 0, got {successes} of {count}")
    rate = successes / count
    centre = (rate + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * math.sqrt(rate * (1 - rate) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(values: Sequence[float], z: float = Z95) -> tuple[float, float]:
    """The normal interval of a mean, from the sample standard deviation (n - 1)."""
    series = pd.Series(values, dtype=float)
    half = z * series.std(ddof=1) / math.sqrt(len(series)) if len(series) > 1 else 0.0
    return series.mean() - half, series.mean() + half


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

    An answer is correct when it equals the reference as text; `read_answer` finds it in the response.
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
                answer == question.answer for answer, question in zip(answers, questions, strict=True)
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


def oracle_rows(
    questions: Sequence[Task], *, cost: Callable[[ReasoningFormat, int], int] = token_cost
) -> pd.DataFrame:
    """The rows of an ideal policy on dial questions: always the cheapest format that is right.

    Where no format reaches, it is wrong as cheaply as it can be.
    """
    chosen = [oracle_format(question.depth) for question in questions]
    return pd.DataFrame(
        {
            "tier": [question.tier for question in questions],
            "depth": [question.depth for question in questions],
            "format": chosen,
            "correct": [format is not None for format in chosen],
            "tokens": [
                cost(format or ReasoningFormat.DIRECT, question.depth)
                for format, question in zip(chosen, questions, strict=True)
            ],
        }
    )


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
