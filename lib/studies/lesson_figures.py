"""Figures of the dial world, and those of one of notebooks 00 to 04 alone; the look is `shared.figures`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.formats import ReasoningFormat
from lib.studies.shared.figures import COLOURS, MARKERS, NAMES

TIER_SHADES = {"easy": "0.97", "medium": "0.93", "hard": "0.88", "not trained": "0.80"}


def staircase(
    summary: pd.DataFrame, *, reach: Mapping[str, int] | None = None, ax: Axes | None = None
) -> Figure:
    """Accuracy by depth, a line per format with its 95 % interval; `reach` marks the predicted steps."""
    figure, ax = (ax.figure, ax) if ax is not None else plt.subplots()
    shade_tiers(ax, int(summary["depth"].max()))
    for format, rows in summary.groupby("format", sort=False):
        _accuracy_line(ax, rows, "depth", **_look(format))
        if reach and reach[format] < summary["depth"].max():
            ax.axvline(reach[format] + 0.5, color=COLOURS[format], ls=":", lw=1.2)
    ax.axhline(0.1, color="0.4", lw=0.8, ls="--")
    ax.text(summary["depth"].min() - 0.4, 0.045, "guessing", fontsize=8, color="0.3")
    ax.set(xlabel="depth of the question (operations)", ylabel="accuracy", ylim=(0, 1.04))
    ax.set_xticks(sorted(summary["depth"].unique()))
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def accuracy_and_tokens(summary: pd.DataFrame) -> Figure:
    """Two panels over depth: what each format gets right, and what it costs."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    staircase(summary, ax=left)
    left.legend(loc="center right", bbox_to_anchor=(1, 0.6))
    shade_tiers(right, int(summary["depth"].max()))
    for format, rows in summary.groupby("format", sort=False):
        right.plot(rows["depth"], rows["tokens"], **_look(format), ms=5)
        middle = rows.iloc[len(rows) // 2]
        right.annotate(
            NAMES[format],
            (middle["depth"], middle["tokens"]),
            (-6, 8),
            textcoords="offset points",
            ha="right",
        )
    right.set(xlabel="depth of the question (operations)", ylabel="mean tokens per response", ylim=(0, None))
    right.set_xticks(left.get_xticks())
    return figure


def tokens_by_format(rows: pd.DataFrame) -> Figure:
    """Mean tokens of each format, a group of bars per tier; each bar carries its number."""
    means = rows.groupby(["tier", "format"])["tokens"].mean().unstack()
    tiers = [tier for tier in TIER_SHADES if tier in means.index]
    formats = [format for format in ReasoningFormat if format in means.columns]
    figure, ax = plt.subplots()
    table = means.loc[tiers, formats].rename(columns=NAMES)
    colours, ylabel = [COLOURS[format] for format in formats], "mean tokens per completion"
    table.plot.bar(ax=ax, color=colours, width=0.8, rot=0, xlabel="", ylabel=ylabel)
    for bars in ax.containers:
        ax.bar_label(bars, fmt="%.0f", fontsize=8)
    ax.margins(y=0.1)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.01), ncols=len(formats), frameon=False)
    return figure


def share_bars(shares: pd.DataFrame) -> Figure:
    """Stacked bars: the share of each format (columns) in each tier (rows); other columns are grey.

    Shares are rounded so that the whole percents of a row sum to 100; parts that are too small carry no
    number.
    """
    formats = [format for format in ReasoningFormat if format in shares.columns]
    shares = shares[[*formats, *(name for name in shares.columns if name not in formats)]]
    shares = shares.apply(_whole_percents, axis=1)
    figure, ax = plt.subplots()
    left = pd.Series(0.0, index=shares.index)
    for name, part in shares.items():
        colour = COLOURS.get(name, (0.7,) * 3)
        bars = ax.barh(shares.index, part, left=left, color=colour, label=NAMES.get(name, name))
        labels = [f"{share:.0%}" if share >= 0.05 else "" for share in part]
        ax.bar_label(bars, labels, label_type="center", color=_readable_on(colour))
        left += part
    ax.invert_yaxis()
    ax.grid(visible=False)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.01), ncols=5, frameon=False)
    ax.set(xlabel="share of responses", ylabel=shares.index.name or "tier", xlim=(0, 1))
    return figure


def shade_tiers(ax: Axes, deepest: int) -> None:
    """Shade and name the depths of the three tiers, and those beyond training."""
    for name, (low, high) in {
        "easy": (1, 2),
        "medium": (3, 6),
        "hard": (7, max(min(deepest, 12), 7)),
        "not trained": (13, deepest),
    }.items():
        if low <= deepest:
            ax.axvspan(low - 0.5, high + 0.5, color=TIER_SHADES[name], zorder=0, lw=0)
            place = ax.get_xaxis_transform()  # x in depths, y in parts of the axis
            ax.text((low + high) / 2, 1.015, name, ha="center", fontsize=9, color="0.25", transform=place)
    ax.set_xlim(0.5, deepest + 0.5)


def _accuracy_line(ax: Axes, rows: pd.DataFrame, x: str, **look: Any) -> None:
    """Accuracy over a column, with its interval behind it."""
    ax.fill_between(
        rows[x], rows["accuracy_low"], rows["accuracy_high"], color=look["color"], alpha=0.2, lw=0
    )
    ax.plot(rows[x], rows["accuracy"], ms=5, **look)


def _look(format: str) -> dict[str, Any]:
    """How the points of a format are drawn and named."""
    return {"color": COLOURS[format], "marker": MARKERS[format], "label": NAMES[format]}


def _whole_percents(shares: pd.Series) -> pd.Series:
    """Shares that sum to 1 as whole percents that do: those that lose most by rounding down get one more."""
    percents = (100 * shares).floordiv(1)
    lost = (100 * shares - percents).sort_values(ascending=False, kind="stable")
    percents[lost.index[: round(100 * shares.sum() - percents.sum())]] += 1
    return percents / 100


def _readable_on(colour: tuple) -> str:
    """Black or white, whichever stands out more, by the luminance of WCAG 2."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return "black" if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 else "white"
