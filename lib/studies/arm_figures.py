"""Figures of notebook 04; the look is lib.studies.shared.figures."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.studies.arm_tables import FORMATS, MODES, POLICIES
from lib.studies.lesson_figures import shade_tiers
from lib.studies.paired import bootstrap_mean
from lib.studies.shared.figures import MARKERS, NAMES, PALETTE

POLICY_COLOURS = dict(zip(POLICIES, (PALETTE[7], PALETTE[1], PALETTE[3], PALETTE[0]), strict=True))
MODE_MARKERS = {"adaptive": "*", **MARKERS, "consensus": "P", "majority": "X"}
MODE_NAMES = {**NAMES, "majority": "majority of 8"}


def accuracy_by_tokens(table: pd.DataFrame, *, zoom: float = 0.95) -> Figure:
    """Tokens in all (log scale) against accuracy: a colour a policy, a marker a mode; the top once more.

    `table` is `arm_tables.with_intervals` by policy and mode. Markers are hollow, and larger for earlier
    policies, since some coincide.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
    for ax in axes:
        for (policy, mode), row in table.iterrows():
            size = 11 - 1.8 * list(POLICY_COLOURS).index(policy)
            _point(ax, row, POLICY_COLOURS[policy], MODE_MARKERS[mode], size)
        ax.set(xscale="log", xlabel="mean tokens for a question (log scale)", ylabel="accuracy")
    top = table[table["accuracy"] >= zoom]
    axes[0].set(ylim=(0, 1.03), title="all")
    axes[1].set(
        ylim=(top["accuracy_low"].min() - 0.002, 1.002),
        xlim=(0.8 * top["tokens"].min(), 1.25 * top["tokens"].max()),
    )
    axes[1].set_title("the top")
    for ax, ticks in zip(axes, ((4, 16, 64, 256), (32, 64, 128, 256, 512)), strict=True):
        ax.set_xticks(ticks, [str(tick) for tick in ticks])
        ax.minorticks_off()
    _legends(figure, axes[0], table)
    return figure


def _point(ax: Axes, row: pd.Series, colour: tuple, marker: str, size: float) -> None:
    low, high = row["accuracy"] - row["accuracy_low"], row["accuracy_high"] - row["accuracy"]
    error = [[max(0.0, low)], [max(0.0, high)]]
    look = {"color": colour, "marker": marker, "ms": size + 3 * (marker == "*"), "mfc": "none", "lw": 1}
    ax.errorbar(row["tokens"], row["accuracy"], yerr=error, **look)


def _legends(figure: Figure, ax: Axes, table: pd.DataFrame) -> None:
    """Colours name the policies, markers the modes; beside the panels."""
    there = [set(table.index.get_level_values(level)) for level in ("policy", "mode")]
    handles = [
        ax.plot([], [], "s", color=colour, label=POLICIES[policy])[0]
        for policy, colour in POLICY_COLOURS.items()
        if policy in there[0]
    ] + [
        ax.plot([], [], MODE_MARKERS[mode], color="0.3", label=MODE_NAMES.get(mode, mode))[0]
        for mode in MODES
        if mode in there[1]
    ]
    figure.legend(handles=handles, loc="outside right center", frameon=False)


def by_depth(rows: pd.DataFrame, oracle: Mapping[int, float]) -> Figure:
    """Two panels over depth, a line per `way` ("policy, mode"): accuracy with its interval, tokens in all."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for place, (way, group) in enumerate(rows.groupby("way", sort=False)):
        policy, mode = str(way).split(", ")
        colour = POLICY_COLOURS[next(key for key, name in POLICIES.items() if name == policy)]
        look = {"color": colour, "marker": MODE_MARKERS[mode], "ms": 6, "label": way}
        look["ls"] = "-" if mode == "adaptive" else ":"
        at = {depth: bootstrap_mean(part, "correct", draws=500) for depth, part in group.groupby("depth")}
        found = np.array(list(at.values()))
        beside = np.array(list(at)) + 0.18 * (place - 1)  # intervals of one depth stand side by side
        ends = np.abs(found[:, 1:] - found[:, :1]).T
        left.errorbar(beside, found[:, 0], ends, capsize=2, elinewidth=1, **look)
        right.plot(group.groupby("depth")["tokens"].mean(), **look)
    right.plot(list(oracle), list(oracle.values()), color="0.3", ls="--", label="oracle")
    for ax in (left, right):
        shade_tiers(ax, max(oracle))
        ax.set_xlabel("depth of the question (operations)")
        ax.set_xticks(list(oracle))
    left.set(ylabel="accuracy", ylim=(None, 1.005))
    right.set(ylabel="mean tokens for a question", ylim=(0, None))
    figure.legend(*right.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def chosen_and_forced(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """A panel a policy: accuracy per format, chosen, forced on the same questions, forced on all."""
    figure, axes = plt.subplots(
        1, len(tables), figsize=(5 * len(tables), 4), sharey=True, squeeze=False, layout="constrained"
    )
    looks = {
        "chosen": (PALETTE[0], "o"),
        "forced, where chosen": (PALETTE[1], "s"),
        "forced, all": ("0.45", "^"),
    }
    for ax, (name, table) in zip(axes[0], tables.items(), strict=True):
        for place, (kind, (colour, marker)) in enumerate(looks.items()):
            rows = table[table["what"] == kind].set_index("format").reindex(FORMATS)
            at = [0.22 * (place - 1) + index for index in range(len(FORMATS))]
            error = [rows["accuracy"] - rows["low"], (rows["high"] - rows["accuracy"]).clip(lower=0)]
            look = {"color": colour, "marker": marker, "ls": "none", "capsize": 3, "label": kind}
            ax.errorbar(at, rows["accuracy"], yerr=error, **look)
        ax.set_xticks(range(len(FORMATS)), [NAMES[format] for format in FORMATS])
        ax.set(title=name, ylim=(0, 1.03))
    axes[0][0].set_ylabel("accuracy")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return figure


def budget_panels(table: pd.DataFrame) -> Figure:
    """Over the budget: accuracy with its interval, and how many responses cannot be read."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), sharex=True, layout="constrained")
    for policy, rows in table.groupby("policy", sort=False):
        rows, look = rows.sort_values("budget"), {"color": POLICY_COLOURS[policy], "marker": "o", "ms": 5}
        left.fill_between(
            rows["budget"], rows["accuracy_low"], rows["accuracy_high"], color=look["color"], alpha=0.2, lw=0
        )
        left.plot(rows["budget"], rows["accuracy"], label=POLICIES[policy], **look)
        right.plot(rows["budget"], rows["cut"] * rows["unreadable"], label=POLICIES[policy], **look)
    left.set(ylabel="accuracy", ylim=(0, 1.03))
    right.set(ylabel="share that cannot be read", ylim=(-0.02, 0.52))
    for ax in (left, right):
        ax.set(xlabel="budget (tokens, log scale)", xscale="log")
        ticks = sorted(table["budget"].unique())
        ax.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
        ax.minorticks_off()
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure
