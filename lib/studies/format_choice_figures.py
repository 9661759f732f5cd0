"""Notebook 03's figures: shares while training and by depth, what each change did."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.dial import MAX_DEPTH, TIERS, oracle_format, token_cost
from lib.formats import ReasoningFormat
from lib.methods.ada_grpo import AdaGRPO
from lib.studies.causes import VARIANTS
from lib.studies.changes import CHANGES
from lib.studies.format_choice import shares
from lib.studies.lesson_figures import shade_tiers
from lib.studies.shared.figures import COLOURS, METHODS, NAMES, PALETTE

SMOOTH = 8  # updates
LOOK = {
    "sft": {"color": "0.5", "ls": ":", "marker": "s"},
    "grpo": {"color": PALETTE[3], "ls": "--", "marker": "^"},
    "ada_grpo": {"color": PALETTE[0], "ls": "-", "marker": "o"},
}
TIER_LOOK = {"easy": (PALETTE[9], "-"), "medium": (PALETTE[4], "--"), "hard": (PALETTE[5], ":")}


# ---- while training ------------------------------------------------------------------------------


def smoothed(log: pd.DataFrame, name: str) -> pd.Series:
    """A column of a log by update, as the mean over the last `SMOOTH` updates."""
    gap = max(1, round(log["step"].max() / len(log)))  # a shipped log has a row for every second update
    values = log.set_index("step")[name].rolling(max(1, SMOOTH // gap), min_periods=1)
    return values.mean()


def others_range(logs: pd.DataFrame, name: str) -> pd.DataFrame:
    """The lowest and highest value among runs at each update, smoothed like the lines."""
    runs = {seed: smoothed(log, name) for seed, log in logs.groupby("seed")}
    return pd.DataFrame(runs).agg(["min", "max"], axis=1)


def long_cot_curves(log: pd.DataFrame, others: pd.DataFrame) -> Figure:
    """One panel: the share of long CoT by update, a line per tier; behind it the range of other runs."""
    figure, ax = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    for tier in _tiers(log):
        colour, style = TIER_LOOK.get(tier, (PALETTE[0], "-"))
        _curve(ax, log, others, f"{tier}/format/long_cot_share", color=colour, ls=style, label=tier)
    ax.set(xlabel="update", ylabel="share of long CoT", ylim=(0, 1.02))
    ax.legend(frameon=False, loc="lower right")
    return figure


def format_curves(log: pd.DataFrame, others: pd.DataFrame) -> Figure:
    """A panel per tier: shares of the four formats by update; behind each the range of other runs."""
    tiers = _tiers(log)
    figure, axes = plt.subplots(
        1, len(tiers), figsize=(3 * len(tiers) + 0.8, 3), sharey=True, squeeze=False, layout="constrained"
    )
    for ax, tier in zip(axes[0], tiers, strict=True):
        for format in ReasoningFormat:
            look = {"color": COLOURS[format], "label": NAMES[format]}
            _curve(ax, log, others, f"{tier}/format/{format}_share", **look)
        ax.set(ylim=(0, 1.02), title=tier, xlabel="update")
    axes[0][0].set_ylabel("share of responses")
    handles = axes[0][0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=4, frameon=False)
    return figure


def _tiers(log: pd.DataFrame) -> list[str]:
    """The tiers that a log tells apart, those of the dial world first."""
    found = [name.removesuffix("/accuracy") for name in log if name.endswith("/accuracy")]
    return sorted(found, key=lambda tier: [*TIERS, tier].index(tier))


def _curve(ax: Axes, log: pd.DataFrame, others: pd.DataFrame, name: str, **look: object) -> None:
    if name in others:
        band = others_range(others, name)
        ax.fill_between(band.index, band["min"], band["max"], color=look["color"], alpha=0.2, lw=0)
    ax.plot(smoothed(log, name), lw=1.8, **look)


# ---- by depth ------------------------------------------------------------------------------------


def depth_shares(answers: pd.DataFrame) -> Figure:
    """A panel per method and one for the oracle: shares of the formats at each depth, stacked."""
    methods = list(answers["method"].unique())
    panels = {METHODS[m]: shares(answers[answers["method"] == m], "depth") for m in methods}
    depths = sorted(answers["depth"].unique())
    panels["oracle"] = pd.DataFrame(
        {
            format: [float(oracle_format(d) == format) for d in depths if d <= MAX_DEPTH]
            for format in ReasoningFormat
        },
        index=[d for d in depths if d <= MAX_DEPTH],
    )
    figure, axes = plt.subplots(2, 2, figsize=(9, 4.8), sharex=True, sharey=True, layout="constrained")
    for ax, (name, found) in zip(axes.flat, panels.items(), strict=False):
        _stacked(ax, found.sort_index())
        ax.set(title=name, xticks=depths, ylim=(0, 1), xlim=(0.5, max(depths) + 0.5))
        ax.axvline(MAX_DEPTH + 0.5, color="black", lw=1, ls="--")
    for ax in axes[:, 0]:
        ax.set_ylabel("share of responses")
    for ax in axes[-1]:
        ax.set_xlabel("depth of the question (operations)")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=5, frameon=False)
    return figure


def _stacked(ax: Axes, found: pd.DataFrame) -> None:
    """Bars of shares on top of each other, a bar per depth."""
    bottom = pd.Series(0.0, index=found.index)
    for name in found:
        colour = COLOURS.get(name, (0.7,) * 3)
        ax.bar(found.index, found[name], bottom=bottom, color=colour, width=0.92, label=NAMES.get(name, name))
        bottom += found[name]
    ax.grid(visible=False)


def depth_lines(lines: pd.DataFrame) -> Figure:
    """Two panels over depth: accuracy and tokens of each method with intervals, and the oracle's."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for ax, name in zip(panels, ("accuracy", "tokens"), strict=True):
        for method, rows in lines.groupby("method", sort=False):
            look = LOOK[method]
            ax.fill_between(
                rows["depth"], rows[f"{name}_low"], rows[f"{name}_high"], color=look["color"], alpha=0.2, lw=0
            )
            ax.plot(rows["depth"], rows[name], ms=4, label=METHODS[method], **look)
        shade_tiers(ax, int(lines["depth"].max()))
        ax.axvline(MAX_DEPTH + 0.5, color="black", lw=1, ls="--")
        ax.set(xlabel="depth of the question (operations)", xticks=sorted(lines["depth"].unique()))
    within = range(1, MAX_DEPTH + 1)
    cost = [token_cost(best, depth) for depth in within if (best := oracle_format(depth))]
    panels[1].step(within, cost, where="mid", color="black", lw=1.2, label="oracle")
    panels[0].plot(within, [1.0] * MAX_DEPTH, color="black", lw=1.2)
    panels[0].set(ylabel="accuracy", ylim=(0, 1.04))
    panels[1].set(ylabel="mean tokens per response", ylim=(0, None))
    figure.legend(*panels[1].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure


# ---- what each change did ------------------------------------------------------------------------


def effects_figure(found: pd.DataFrame) -> Figure:
    """A line per variant: long CoT and changed formats on easy questions over the story's range; accuracy."""
    figure, axes = plt.subplots(
        1, 3, figsize=(11, 0.34 * len(found) + 1.1), sharey=True, layout="constrained"
    )
    panels = dict(zip(("long", "moved", "accuracy"), axes, strict=True))
    for place, method in enumerate(found.index):
        low, high = CHANGES[method].allowed
        panels[CHANGES[method].judged].barh(place, high - low, left=low, color="0.85", height=0.8, zorder=0)
        is_grpo = not issubclass(VARIANTS[method].method, AdaGRPO)
        look = {"color": LOOK["grpo" if is_grpo else "ada_grpo"]["color"], "fmt": "o", "ms": 5, "capsize": 3}
        for name, ax in panels.items():
            mean, low, high = found.loc[method, name]
            ax.errorbar(mean, place, xerr=[[mean - low], [high - mean]], **look)
    axes[0].set_yticks(range(len(found)), [CHANGES[m].done for m in found.index])
    axes[0].invert_yaxis()
    axes[0].set(xlabel="long CoT on easy\n(grey: the story)", xlim=(-0.02, 1.02))
    axes[1].set(xlabel="changed format on easy\n(grey: the story)", xlim=(-0.02, 1.02))
    axes[2].set(xlabel="accuracy, all tiers")
    return figure
