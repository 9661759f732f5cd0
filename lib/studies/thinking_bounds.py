"""What routing the two modes of the untrained dial-thinker reaches: bounds beside AdaptThink.

A router says for each question whether to skip. It is scored on shipped answers of dial-thinker in both
modes to the same questions (`thinking` and `nothinking`, five samples each), and fitted on validation ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lib.dial import MAX_DEPTH
from lib.studies.depths import question_sets
from lib.studies.paired import Interval, bootstrap_mean, drawn_means, interval
from lib.studies.shared import decision_states
from lib.studies.thinking_answers import balanced, read_answers, validation_questions
from lib.tasks import Task
from lib.thinking import thinking_tasks

DELTA = 0.05  # what a router too is paid for skipping, to choose as equation (3) does
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]
KEYS = ["seed", "question"]
THRESHOLDS = range(MAX_DEPTH + 1)
CUTS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)  # of the probe


@cache
def both_modes(which: str = "balanced") -> pd.DataFrame:
    """`paired_modes` of the shipped answers to a set of questions."""
    answers = read_answers("thinking", "nothinking")
    return paired_modes(answers[answers["set"] == which])


def paired_modes(answers: pd.DataFrame) -> pd.DataFrame:
    """A row per seed and question: id, tier, depth, and right_ and tokens_ of each mode.

    `answers` are those of the methods "thinking" and "nothinking", in columns as of shipped answers.
    """
    index = [*KEYS, "id", "tier", "depth"]
    answers = answers.rename(columns={"correct": "right"})
    wide = answers.pivot(index=index, columns="method", values=["right", "tokens"])
    wide.columns = [f"{value}_{mode}" for value, mode in wide.columns]
    return wide.dropna().astype(float).reset_index()


def routed(table: pd.DataFrame, skips: np.ndarray | pd.Series) -> pd.DataFrame:
    """The answers of a router that skips where `skips`: columns as of shipped answers."""
    skips = np.asarray(skips, dtype=bool)
    chosen = {
        name: np.where(skips, table[f"{source}_nothinking"], table[f"{source}_thinking"])
        for name, source in (("correct", "right"), ("tokens", "tokens"))
    }
    return table[[*KEYS, "id", "tier", "depth"]].assign(**chosen, skips=skips)


# ---- routers ---------------------------------------------------------------------------------------


def by_depth(table: pd.DataFrame) -> pd.Series:
    """An oracle that knows each depth's accuracy in both modes, and pays DELTA for skipping."""
    seen = both_modes("validation")
    return table["depth"].map(gains(seen).groupby(seen["depth"]).mean()) >= 0


def gains(table: pd.DataFrame) -> pd.Series:
    """How much oftener skipping is right than thinking, DELTA for skipping included."""
    return table["right_nothinking"] + DELTA - table["right_thinking"]


def by_question(table: pd.DataFrame) -> pd.Series:
    """An oracle that knows four samples of each question in both modes, those of the other seeds.

    So few are held together with as many of its depth.
    """
    gain, seen = gains(table), both_modes("validation")
    usual = table["depth"].map(gains(seen).groupby(seen["depth"]).mean())
    others = gain.groupby(table["question"]).transform("sum") - gain
    return others + (table["seed"].nunique() - 1) * usual >= 0


def in_hindsight(table: pd.DataFrame) -> pd.Series:
    """Sees both answers: thinks only where that alone is right."""
    return table["right_nothinking"] >= table["right_thinking"]


def states(policy: Loaded, tasks: Sequence[Task]) -> np.ndarray:
    """The hidden state at the end of each prompt, where the mode is chosen."""
    model, tokenizer = policy
    prompts = [task.prompt for task in thinking_tasks(tasks, tokenizer)]
    return decision_states(model, tokenizer, prompts).numpy()


def probe_scores(policy: Loaded) -> np.ndarray:
    """P(a skipped answer is right) of each balanced question, read linearly from the state; (1200,)."""
    seen, fresh = (states(policy, tasks) for tasks in (validation_questions(), question_sets()["balanced"]))
    mean, deviation = seen.mean(0), seen.std(0).clip(min=1e-6)
    validation = both_modes("validation")
    rows = ((seen - mean) / deviation)[validation["question"]]
    probe = LogisticRegression(max_iter=2000, C=0.1).fit(rows, validation["right_nothinking"] > 0)
    return probe.predict_proba((fresh - mean) / deviation)[:, 1]


def routers(
    policy: Loaded, cuts: Sequence[float] = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
) -> dict[str, pd.DataFrame]:
    """The answers of each router by name; the probe skips from each cut of its probability on."""
    table = both_modes()
    scores = probe_scores(policy)[table["question"]]
    return {
        **{f"threshold {depth}": routed(table, table["depth"] <= depth) for depth in THRESHOLDS},
        **{f"probe {cut:g}": routed(table, scores >= cut) for cut in cuts},
        "oracle by depth": routed(table, by_depth(table)),
        "oracle by question": routed(table, by_question(table)),
        "hindsight": routed(table, in_hindsight(table)),
    }


def points(found: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Where routers lie on the plane: router, setting, accuracy, tokens and the share skipped."""
    rows = []
    for name, table in found.items():
        router, _, setting = name.partition(" ") if name[-1].isdigit() else (name, "", "")
        means = table[["correct", "tokens", "skips"]].mean()
        rows.append((router, setting, means["correct"], means["tokens"], means["skips"]))
    return pd.DataFrame(rows, columns=["router", "setting", "accuracy", "tokens", "skips"])


# ---- the gap ---------------------------------------------------------------------------------------


def gap_closed(method: str | pd.DataFrame, *, draws: int = 1000) -> Interval:
    """How far from random mixtures to thresholds on depth a policy is, at the tokens it spends.

    0: no better than to skip at random; 1: as good as to skip up to a depth, in the untrained modes.
    """
    answers = balanced(method) if isinstance(method, str) else method
    table = both_modes()
    tables = [answers, *(routed(table, table["depth"] <= depth) for depth in THRESHOLDS)]
    (right, *rights), (spent, *costs) = (
        drawn_means(tables, column, draws, 0) for column in ("correct", "tokens")
    )
    # Thresholds from 0 up cost less and less.
    best = _at(spent, np.stack(costs)[::-1], np.stack(rights)[::-1])
    chance = _at(spent, np.stack([costs[-1], costs[0]]), np.stack([rights[-1], rights[0]]))
    return interval((right - chance) / (best - chance))


def _at(tokens: np.ndarray, costs: np.ndarray, rights: np.ndarray) -> np.ndarray:
    """Accuracy at so many tokens on the line through points (K, draws), of rising cost."""
    return np.array([np.interp(*one) for one in zip(tokens, costs.T, rights.T, strict=True)])


def bounds(found: dict[str, pd.DataFrame], *methods: str, text: Callable[..., str]) -> pd.DataFrame:
    """Accuracy, tokens and share skipped of `routers` and of trained policies, and the gap closed."""
    named = {name: found[name] for name in ("oracle by depth", "oracle by question", "hindsight")}
    named |= {name: table for name, table in found.items() if name in ("threshold 6", "probe 0.8")}
    rows = {}
    for name, answers in {**named, **{method: balanced(method) for method in methods}}.items():
        rows[name] = {
            "accuracy": text(bootstrap_mean(answers, "correct", draws=1000)),
            "tokens": text(bootstrap_mean(answers, "tokens", draws=1000), 1),
            "skips": text(bootstrap_mean(answers, "skips", draws=1000)),
            "gap closed": text(gap_closed(answers), 2),
        }
    return pd.DataFrame(rows).T
