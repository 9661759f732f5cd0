"""Notebook 00: bounds of choosing, prompts of one length, worked lines taken apart, and its figures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from transformers import PreTrainedTokenizerBase

from lib.dial import TURNS, Question
from lib.studies.shared.figures import COLOURS, MARKERS, NAMES

# ---- bounds of choosing --------------------------------------------------------------------------


def hindsight_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Of the responses to each question the cheapest that is right; where none is, the cheapest: a row each.

    `table` is a `rollout_table` of every way to respond. Nobody can choose so: it looks at the outcomes.
    """
    best_first = table.assign(wrong=~table["correct"].astype(bool)).sort_values(["wrong", "tokens"])
    return best_first.groupby(["task_id", "sample"], sort=False).head(1).drop(columns="wrong")


def mixtures(summary: pd.DataFrame) -> pd.DataFrame:
    """The corners of what a blind mixture reaches: columns tokens and accuracy, from few tokens to many.

    Who draws one of several policies by chance, without a look at the question, gets a mean of their points.
    """
    corners: list[tuple[float, float]] = []
    for point in sorted(summary[["tokens", "accuracy"]].itertuples(index=False, name=None)):
        while len(corners) > 1 and _slope(corners[-2], corners[-1]) <= _slope(corners[-2], point):
            corners.pop()
        if not corners or point[1] > corners[-1][1]:
            corners.append(point)
    return pd.DataFrame(corners, columns=["tokens", "accuracy"])


def _slope(left: tuple[float, float], right: tuple[float, float]) -> float:
    return (right[1] - left[1]) / (right[0] - left[0])


def mixed_accuracy(corners: pd.DataFrame, tokens: float) -> float:
    """The accuracy of the best blind mixture that costs so many tokens on average."""
    return float(np.interp(tokens, corners["tokens"], corners["accuracy"]))


# ---- prompts of one length -----------------------------------------------------------------------


def of_one_length(prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The prompts, each filled up with further colours to the length of the longest one, in tokens."""
    lengths = [len(ids) for ids in tokenizer(list(prompts)).input_ids]
    return [
        prompt.replace(" dial shows", " red" * (max(lengths) - length) + " dial shows", 1)
        for prompt, length in zip(prompts, lengths, strict=True)
    ]


# ---- worked lines --------------------------------------------------------------------------------


class Worked(NamedTuple):
    """A long chain of thought: what it restates, its lines as (before, operation, after), its answer."""

    restated: tuple[str, ...]
    lines: tuple[tuple[str, str, str], ...]
    answer: str


def taken_apart(text: str) -> Worked:
    """Read an untagged long chain of thought as far as it can be read."""
    restated = re.search(r"and turns ([^.\n]*)\.", text)
    closing = re.search(r"It shows (\d)\.\s*$", text)
    lines = re.findall(r"^(\d) (\S+) = (\d)$", text, re.MULTILINE)
    return Worked(tuple(restated[1].split()) if restated else (), tuple(lines), closing[1] if closing else "")


def first_fault(question: Question, text: str) -> str | None:
    """What is wrong first, from the top: "copy", "lines", "step" or "answer"; None where all is right.

    The question is copied wrongly; the lines are not the copied operations, one by one; a line does not begin
    where the one before ended, or is miscalculated; the answer is not what the last line says.
    """
    worked = taken_apart(text)
    if worked.restated != question.operations:
        return "copy"
    if tuple(operation for _, operation, _ in worked.lines) != worked.restated:
        return "lines"
    ends = [question.start, *(after for _, _, after in worked.lines)]
    for (start, end), (before, operation, _) in zip(pairwise(ends), worked.lines, strict=True):
        if before != start or TURNS[operation][before] != end:
            return "step"
    return None if worked.answer == ends[-1] else "answer"


# ---- figures -------------------------------------------------------------------------------------

Place = tuple[tuple[int, int], str]  # of a name beside its point: offset in points, and which end is there
LEFT_ABOVE, LEFT_BELOW = ((0, 9), "right"), ((4, -20), "right")


def training_curve(log: pd.DataFrame, deeper_at: Sequence[int]) -> Figure:
    """Training loss by step; dotted lines where questions of a further depth come in."""
    figure, ax = plt.subplots(figsize=(7, 3.4))
    for step in deeper_at:
        ax.axvline(step, color="0.6", ls=":", lw=1, label="one depth more" if step == deeper_at[0] else None)
    ax.plot(log["step"], log["loss"], color="black", lw=1.2, label="loss")
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="step (log scale)",
        ylabel="weighted loss of responses\n(log scale)",
    )
    ax.set_xlim(left=10)
    ax.legend(frameon=False)
    return figure


def learning_curves(asked: pd.DataFrame) -> Figure:
    """Two panels by the step of training, a line per style: what can be read, and what is right.

    Points of a step stand side by side, so that none hides another.
    """
    shift = asked["step"].max() / 60
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for ax, what in zip(axes, ("readable", "right"), strict=True):
        for place, (format, rows) in enumerate(asked.groupby("format", sort=False)):
            sums = rows.groupby("step")[[what, "count"]].sum()
            look = {"color": COLOURS[format], "marker": MARKERS[format], "label": NAMES[format]}
            ax.plot(sums.index + (place - 1.5) * shift, sums[what] / sums["count"], ms=6, **look)
        ax.set(xlabel="step of your training", title=what, ylim=(-0.03, 1.04))
        ax.set_xticks(sorted(asked["step"].unique()))
    axes[0].set_ylabel("share of responses")
    axes[1].axhline(0.1, color="0.4", lw=0.8, ls="--")
    axes[1].text(0, 0.12, "guessing", fontsize=8, color="0.3")
    axes[1].legend(frameon=False, loc="upper left")
    return figure


def choice_plane(summary: pd.DataFrame, corners: pd.DataFrame) -> Figure:
    """Accuracy and tokens of each policy, and the line that mixtures of fixed ones cannot cross."""
    above = {"oracle in hindsight": LEFT_ABOVE, "long_cot": LEFT_ABOVE, "oracle by depth": LEFT_BELOW}
    figure = _accuracy_tokens_plane(summary, names_at=above)
    tokens = np.geomspace(corners["tokens"].min(), corners["tokens"].max(), 200)
    accuracy = np.interp(tokens, corners["tokens"], corners["accuracy"])
    figure.axes[0].plot(
        tokens, accuracy, color="0.45", ls="--", lw=1.2, label="best mixture that does not look"
    )
    figure.axes[0].legend(frameon=False, loc="lower right")
    return figure


def _accuracy_tokens_plane(summary: pd.DataFrame, *, names_at: Mapping[str, Place]) -> Figure:
    """One point per policy: mean tokens against accuracy, with 95 % intervals; up and left is better.

    Names stand where `names_at` says, otherwise below their points on the right.
    """
    figure, ax = plt.subplots()
    for _, row in summary.iterrows():
        name, x, y = row["policy"], row["tokens"], row["accuracy"]
        ax.errorbar(
            x,
            y,
            xerr=[[x - row["tokens_low"]], [row["tokens_high"] - x]],
            # at a rate of 1 the upper bound may lie below it by a rounding error
            yerr=[[y - row["accuracy_low"]], [max(0.0, row["accuracy_high"] - y)]],
            color=COLOURS.get(name, "black"),
            marker=MARKERS.get(name, "*"),
            ms=14 if name == "oracle" else 8,
            capsize=3,
            ls="none",
        )
        offset, side = names_at.get(name, ((8, -14), "left"))
        ax.annotate(NAMES.get(name, name), (x, y), offset, textcoords="offset points", ha=side)
    ax.set_xscale("log")
    ticks = [tick for tick in (4, 8, 16, 32, 64, 128, 256) if tick < 2 * summary["tokens"].max()]
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.minorticks_off()
    ax.set(xlabel="mean tokens per response (log scale)", ylabel="accuracy", ylim=(0, 1.1))
    return figure
