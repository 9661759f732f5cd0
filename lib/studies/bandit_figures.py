"""The figures of the configuration bandit, in the look of lib.studies.shared.figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.dial import frozen_llm
from lib.studies.bandit_curves import SURE
from lib.studies.shared.figures import PALETTE

COLOURS = dict(zip(frozen_llm.MIXTURES, PALETTE[:3], strict=True))
MARKERS = dict(zip(frozen_llm.MIXTURES, "osD", strict=True))
LINES = tuple(  # of the budget curves: blues to black, warm colours and greens, then pale ones
    zip(
        (PALETTE[9], PALETTE[0], "black", PALETTE[3], PALETTE[1], PALETTE[2], PALETTE[4], PALETTE[7]),
        "os^DvPX*",
        strict=True,
    )
)


def configuration_curves(table: pd.DataFrame) -> Figure:
    """Accuracy in a question's own style: against steps for mixed questions, against temperature by kind."""
    apt = table[table["instruction"] == table["kind"].map(frozen_llm.APT_STYLE)]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.4), sharey=True, dpi=68, layout="constrained")
    mixed = apt[(apt["kind"] == "mixed") & (apt["temperature"] == 0)]
    for depth, colour, marker in zip((2, 4, 8, 12), sns.color_palette("viridis", 4), "osD^", strict=True):
        rows = mixed[mixed["depth"] == depth]
        left.plot(
            range(len(rows)),
            rows["right"] / rows["asked"],
            color=colour,
            marker=marker,
            label=f"{depth} turns",
        )
    left.set_xticks(range(len(frozen_llm.STEPS)), frozen_llm.STEPS)
    left.set(
        xlabel="steps asked for", ylabel="accuracy", title="mixed questions, temperature 0", ylim=(0, 1.04)
    )
    left.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=4, fontsize=9)
    fitting = apt[(2 * apt["steps"] >= apt["depth"]) & (apt["steps"] <= apt["depth"])]
    sums = fitting.groupby(["kind", "temperature"])[["right", "asked"]].sum()
    for name, rows in (sums["right"] / sums["asked"]).groupby("kind"):
        values = rows.droplevel(0)
        right.plot(values.index, values, color=COLOURS[name], marker=MARKERS[name], label=name)
    right.set(xlabel="temperature", title="fitting steps, by kind of question")
    right.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, fontsize=9)
    return figure


def training(history: pd.DataFrame, lines: Mapping[str, float]) -> Figure:
    """Mean reward of the last 20 updates with horizontal lines to compare; tau and the heads' entropies."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.4), dpi=68, layout="constrained")
    left.plot(history["step"], history["reward"].rolling(20, min_periods=1).mean(), color="black", lw=1.5)
    _levels(left, lines, history["step"].max())
    left.set(xlabel="update", ylabel="reward, mean of 20 updates", ylim=(0, 1))
    right.plot(history["step"], history["tau"], color="black", ls="--", label="tau")
    for column, colour in zip([c for c in history if c.startswith("entropy/")], PALETTE, strict=False):
        right.plot(history["step"], history[column], color=colour, label=f"entropy, {column[8:]}", lw=1.3)
    right.set(xlabel="update", ylabel="entropy (nats) and tau", ylim=(0, None))
    right.legend(frameon=False, fontsize=9)
    return figure


def intervals(frame: pd.DataFrame, *, xlabel: str, lines: Mapping[str, float]) -> Figure:
    """Points with 95 % intervals, a row per method: columns mean, low, high."""
    figure, ax = plt.subplots(figsize=(7, 0.27 * len(frame) + 1.2), dpi=68, layout="constrained")
    places = np.arange(len(frame))
    errors = [frame["mean"] - frame["low"], frame["high"] - frame["mean"]]
    ax.errorbar(frame["mean"], places, xerr=errors, fmt="o", color="black", ms=5, capsize=3)
    for (name, value), style in zip(lines.items(), ("--", ":"), strict=False):
        ax.axvline(value, color="0.4", ls=style, lw=1)
        above = ax.get_xaxis_transform()  # x in data, y in shares of the axis
        ax.text(value, 1.01, name, ha="center", va="bottom", fontsize=9, color="0.25", transform=above)
    ax.set_yticks(places, frame.index)
    ax.set(xlabel=xlabel, ylim=(len(frame) - 0.4, -0.6))
    return figure


def regret_curves(curves: Mapping[str, Sequence[float]], bound: Sequence[float]) -> Figure:
    """Cumulative regret over decisions, with the bound of the paper, on logarithmic axes."""
    figure, ax = plt.subplots(figsize=(6.2, 3.6), dpi=68, layout="constrained")
    for (name, curve), colour in zip(curves.items(), PALETTE, strict=False):
        ax.plot(np.arange(1, len(curve) + 1), curve, color=colour, label=name)
    ax.plot(np.arange(1, len(bound) + 1), bound, color="black", ls="--", label="bound, without its constant")
    ax.plot([1, len(bound)], [1, len(bound)], color="0.6", ls=":", label="regret 1 at every decision")
    ax.set(xscale="log", yscale="log", xlabel="decisions", ylabel="cumulative regret (rewards)")
    ax.legend(frameon=False, fontsize=9)
    return figure


def _levels(ax: Axes, lines: Mapping[str, float], right_end: float) -> None:
    """Horizontal lines to compare with, each with its name above its right end."""
    for (name, value), style in zip(lines.items(), ("--", "-.", ":"), strict=False):
        ax.axhline(value, color="0.4", ls=style, lw=1)
        ax.text(right_end, value + 0.012, name, ha="right", fontsize=9, color="0.25")


def budget_curves(mean: pd.DataFrame, labels: Mapping[str, str], levels: Mapping[str, float]) -> Figure:
    """Reward over the number of answers, a line with its 95 % band for each method that has a label.

    mean: of `bandit_curves.over_seeds`; levels: horizontal lines by their names. REINFORCE is dashed.
    """
    figure, ax = plt.subplots(figsize=(9.4, 4.4), dpi=68, layout="constrained")
    there = [method for method in labels if method in mean.index.get_level_values("method")]
    for method, (colour, marker) in zip(there, LINES, strict=False):
        rows = mean.loc[method].sort_index()
        line = "--" if method.startswith("reinforce") else "-"
        ax.plot(rows.index, rows["mean"], line, c=colour, marker=marker, ms=5, lw=1.4, label=labels[method])
        ax.fill_between(rows.index, rows["low"], rows["high"], color=colour, alpha=0.18, lw=0)
    for (name, value), style in zip(levels.items(), ("--", ":", "-."), strict=False):
        ax.axhline(value, color="0.3", ls=style, lw=1, label=name)
    ticks = sorted(mean.index.get_level_values("answers").unique())
    ax.set(
        xscale="log", xlabel="answers of the frozen LLM (log scale)", ylabel="expected reward, test questions"
    )
    ax.set_xticks(ticks, [f"{tick:,}" for tick in ticks], rotation=45, ha="right", fontsize=9)
    ax.minorticks_off()
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    return figure


def differences(found: pd.DataFrame, *, xlabel: str) -> Figure:
    """Paired differences with 95 % intervals, a row per rival: hollow where not sure after correction."""
    figure, ax = plt.subplots(figsize=(7.4, 0.3 * len(found) + 1.1), dpi=68, layout="constrained")
    for place, (_, row) in enumerate(found.iterrows()):
        ax.plot([row["low"], row["high"]], [place, place], color="black", lw=1.4)
        ax.plot(row["mean"], place, "o", ms=6, color="black", mfc="black" if row["holm"] < SURE else "white")
    ax.axvline(0, color="0.4", ls="--", lw=1)
    ax.set_yticks(range(len(found)), found["other"])
    ax.set(xlabel=xlabel, ylim=(len(found) - 0.4, -0.6))
    return figure


def leads(found: pd.DataFrame, labels: Mapping[str, str]) -> Figure:
    """Paired differences over the number of answers, a panel per rival: hollow where not sure (`compare`)."""
    others = [other for other in labels if other in set(found["other"])]
    figure, axes = plt.subplots(
        1, len(others), figsize=(3.2 * len(others), 3.3), dpi=68, layout="constrained", squeeze=False
    )
    for ax, other in zip(axes[0], others, strict=True):
        rows = found[found["other"] == other]
        ends = [rows["mean"] - rows["low"], rows["high"] - rows["mean"]]
        ax.errorbar(rows["answers"], rows["mean"], yerr=ends, fmt="none", color="black", lw=1.3, capsize=2)
        for sure, part in rows.groupby(rows["holm"] < SURE):
            fill = "black" if sure else "white"
            ax.plot(part["answers"], part["mean"], "o", ms=5.5, color="black", mfc=fill)
        ax.axhline(0, color="0.4", ls="--", lw=1)
        ticks = rows["answers"].tolist()[::2]
        ax.set(xscale="log", title=labels[other], xlabel="answers (log scale)")
        ax.set_xticks(ticks, [f"{tick:,}" for tick in ticks], rotation=45, ha="right", fontsize=9)
        ax.minorticks_off()
    axes[0, 0].set_ylabel("difference in reward, paired")
    return figure
