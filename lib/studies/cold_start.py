"""Notebook 05's cold start: which losses of AdaptThink leave a start where skipping is never drawn.

The toy is a policy that only chooses its first word: `</think>`, the usual start of a thought, or any other
word, which begins a thought as well and is never forced. Its expectation is exact, and its update plain
gradient descent, without Adam. `on_model` reads the runs on dial-thinker, which have Adam.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from lib.methods.adaptthink import VARIANTS, AdaptThink, Variant, counted, importance_ratio
from lib.methods.grpo import clipped_loss, masked_mean
from lib.runs import read_json
from lib.studies.thinking_answers import PLACE, made
from lib.studies.thinking_tables import watched


@dataclass(frozen=True)
class Toy:
    """One question: what a forced response of each mode is worth, and how long it is.

    Outcomes are (advantage, chance) of responses that skip, and of those that think.
    """

    skips: tuple[tuple[float, float], ...] = ((0.15, 0.9), (-0.85, 0.1))
    thinks: tuple[tuple[float, float], ...] = ((0.10, 0.9), (-0.90, 0.1))
    tokens: tuple[int, int] = (400, 4000)
    start: float = 1e-6  # P(skip) before training; the other two words share the rest
    epsilon: float = 0.2


EASY = Toy()  # both modes and the reference are right nine times of ten; the bonus is 0.05
STEPS = (0.05, 0.5, 5.0, 50.0, 500.0, 5000.0)  # effective ones


def weight(
    variant: Variant, p: np.ndarray, outcomes: Sequence[tuple[float, float]], tokens: int, epsilon: float
) -> np.ndarray:
    """What the loss multiplies the gradient of log P(first word) with, over all outcomes of one mode.

    `p` is the probability of that word. In parts of 1 / tokens, but for "sequence": see `effective`.
    """
    exponent = {"geometric_mean": 1 / tokens, "unadjusted": 0.0}.get(variant, 1.0)
    ratio = (2 * p) ** exponent
    found = np.zeros_like(p)
    for advantage, chance in outcomes:
        clipped = ratio > 1 + epsilon if advantage > 0 else ratio < 1 - epsilon
        found += np.where(clipped, 0.0, chance * advantage * ratio)
    return found


def effective(variant: Variant, rate: float, tokens: int) -> float:
    """A rate as an effective step: what it multiplies grad log P with where advantage and ratio are 1."""
    return rate if variant == "sequence" else rate / tokens


def skipping(variant: Variant, step: float, toy: Toy = EASY, *, updates: int = 1000) -> np.ndarray:
    """P(skip) before and after each update, (updates + 1,), at an effective `step` of skipping responses."""
    return _curves(variant, np.array([step]), toy, updates)[:, 0]


def updates_until(
    variant: Variant, steps: Sequence[float], toy: Toy = EASY, *, target: float = 0.1, horizon: int = 10_000
) -> list[float]:
    """The first update after which P(skip) is at least `target`, for each effective step; inf beyond."""
    reached = _curves(variant, np.array(steps), toy, horizon, stop=target) >= target
    return [float(column.argmax()) if column.any() else math.inf for column in reached.T]


def _curves(variant: Variant, steps: np.ndarray, toy: Toy, updates: int, stop: float = 2.0) -> np.ndarray:
    """P(skip), (updates + 1, steps): until all have reached `stop`."""
    first = np.log([toy.start, 0.5, 0.5 - toy.start])
    logits = np.tile(first, (len(steps), 1))
    longer = 1.0 if variant == "sequence" else toy.tokens[0] / toy.tokens[1]
    curve = []
    for _ in range(updates + 1):
        words = np.exp(logits - logits.max(1, keepdims=True))
        words /= words.sum(1, keepdims=True)
        curve.append(words[:, 0])
        if (words[:, 0] >= stop).all():
            break
        push = np.zeros_like(words)
        push[:, 0] = weight(variant, words[:, 0], toy.skips, toy.tokens[0], toy.epsilon) / 2
        push[:, 1] = weight(variant, words[:, 1], toy.thinks, toy.tokens[1], toy.epsilon) / 2 * longer
        logits = logits + steps[:, None] * (push - push.sum(1, keepdims=True) * words)
    return np.stack(curve)


def sweep(
    steps: Sequence[float] = STEPS, toy: Toy = EASY, *, target: float = 0.1, horizon: int = 10_000
) -> pd.DataFrame:
    """Updates until P(skip) passes `target`, losses x effective steps; inf: not within the horizon."""
    rows = {
        variant: updates_until(variant, steps, toy, target=target, horizon=horizon) for variant in VARIANTS
    }
    return pd.DataFrame(rows, index=pd.Index(steps, name="effective step")).T.rename_axis("loss")


def adaptthink_loss(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    is_nothinking: torch.Tensor,
    *,
    nothinking_ratio: float = 0.5,
    epsilon: float = 0.2,
    variant: Variant = "geometric_mean",
) -> torch.Tensor:
    """The clipped loss of AdaptThink, a mean over N responses; log-probs and mask are (N, T).

    geometric_mean: one ratio a response, (pi / pi_IS)^(1 / tokens), as the released code has it.
    sequence: one ratio a response, pi / pi_IS, as published (Eq. 9).
    token: a ratio for each token, the first against `nothinking_ratio`; mean over the tokens of a response.
    unadjusted: the same with the policy's own old probability of the first token, so no importance sampling.
    """
    ratio = importance_ratio(
        log_probs, old_log_probs, mask, is_nothinking, nothinking_ratio=nothinking_ratio, variant=variant
    )
    return masked_mean(clipped_loss(ratio, advantages, epsilon), counted(ratio, mask), group_size=1)


def on_model() -> pd.DataFrame:
    """The shipped runs on dial-thinker: a row for each loss and rate, over its seeds.

    `log P` before and after, the update after which a free response in ten skips (inf: none within the run;
    read at every tenth), and the share that skips at the end.
    """
    rows = [*_started(), *_released()]
    if not rows:
        return pd.DataFrame()
    groups = pd.DataFrame(rows).groupby(["loss", "rate"])
    return groups.agg(
        **{
            "seeds": ("left", "size"),
            "updates": ("updates", "max"),
            "log P, start": ("log_p_start", "mean"),
            "log P, end": ("log_p_end", "mean"),
            "left at, earliest": ("left", "min"),
            "left at, latest": ("left", "max"),
            "skips, end": ("skips_end", "mean"),
            "accuracy, end": ("accuracy_end", "mean"),
        }
    ).reset_index()


def _started() -> list[dict[str, Any]]:
    """The runs that look at the start alone."""
    rows = []
    for path in sorted(PLACE.glob("start/*/seed_*/summary.json")):
        loss, _, rate = path.parent.parent.name.rpartition("_")
        found = read_json(path)
        rows.append(
            {"loss": loss, "rate": float(rate)}
            | _way(*(found[n] for n in ("update", "log_p", "skips", "accuracy")))
        )
    return rows


def _released() -> list[dict[str, Any]]:
    """AdaptThink's own runs: the released loss at its rate."""
    if not made(["adaptthink"]):
        return []
    columns = ["step", "log_p_nothinking", "nothinking_ratio", "accuracy"]
    known = {"loss": "geometric_mean", "rate": AdaptThink.cpu().learning_rate}
    seeds = watched("adaptthink").groupby("seed")
    return [known | _way(*(rows[name].tolist() for name in columns)) for _, rows in seeds]


def _way(
    updates: list[float], log_p: list[float], skips: list[float], accuracy: list[float]
) -> dict[str, float]:
    left = [update for update, share in zip(updates, skips, strict=True) if share >= 0.1]
    ends = {
        "log_p_start": log_p[0],
        "log_p_end": log_p[-1],
        "skips_end": skips[-1],
        "accuracy_end": accuracy[-1],
    }
    return ends | {"updates": updates[-1], "left": min(left, default=math.inf)}
