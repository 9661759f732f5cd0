"""The figures of the course, in one look: the same colour, marker and name for a format everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from IPython.display import Image, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.formats import ReasoningFormat

_PALETTE = sns.color_palette("colorblind")
COLOURS: dict[str, tuple] = dict(
    zip(ReasoningFormat, (_PALETTE[0], _PALETTE[1], _PALETTE[2], _PALETTE[3]), strict=True)
)
MARKERS: dict[str, str] = dict(zip(ReasoningFormat, "osD^", strict=True))
NAMES: dict[str, str] = dict(zip(ReasoningFormat, ("direct", "short CoT", "code", "long CoT"), strict=True))
TIER_SHADES = {"easy": "0.97", "medium": "0.93", "hard": "0.88"}


def use_style() -> None:
    """Set the look of all figures, and let tables show whole sentences; call it once, in the set-up cell."""
    pd.set_option("display.max_colwidth", None)
    sns.set_theme(context="notebook", style="ticks", palette="colorblind")
    plt.rcParams.update({"figure.figsize": (7, 4), "figure.dpi": 100, "axes.grid": True, "grid.alpha": 0.3})


def show(figure: Figure, alt: str) -> None:
    """Display a figure as a PNG that carries its description, for readers who cannot see it."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", metadata={"Description": alt, "Software": None})
    plt.close(figure)
    display(Image(buffer.getvalue(), format="png", alt=alt))


def staircase(
    summary: pd.DataFrame, *, reach: Mapping[str, int] | None = None, ax: Axes | None = None
) -> Figure:
    """Accuracy by depth, a line per format with its 95 % interval; `reach` marks the predicted steps."""
    figure, ax = _canvas(ax)
    shade_tiers(ax, int(summary["depth"].max()))
    for format, rows in summary.groupby("format", sort=False):
        colour = COLOURS[format]
        ax.fill_between(
            rows["depth"], rows["accuracy_low"], rows["accuracy_high"], color=colour, alpha=0.2, lw=0
        )
        ax.plot(
            rows["depth"], rows["accuracy"], color=colour, marker=MARKERS[format], label=NAMES[format], ms=5
        )
        if reach and reach[format] < summary["depth"].max():
            ax.axvline(reach[format] + 0.5, color=colour, ls=":", lw=1.2)
    ax.axhline(0.1, color="0.4", lw=0.8, ls="--")
    ax.text(summary["depth"].min() - 0.4, 0.045, "guessing", fontsize=8, color="0.3")
    ax.set(xlabel="depth of the question (operations)", ylabel="accuracy", ylim=(0, 1.04))
    ax.set_xticks(sorted(summary["depth"].unique()))
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def accuracy_tokens_plane(summary: pd.DataFrame, *, ax: Axes | None = None) -> Figure:
    """One point per policy: mean tokens against accuracy, with 95 % intervals; up and left is better."""
    figure, ax = _canvas(ax)
    for _, row in summary.iterrows():
        name = row["policy"]
        ax.errorbar(
            row["tokens"],
            row["accuracy"],
            xerr=[[row["tokens"] - row["tokens_low"]], [row["tokens_high"] - row["tokens"]]],
            yerr=[[row["accuracy"] - row["accuracy_low"]], [row["accuracy_high"] - row["accuracy"]]],
            color=COLOURS.get(name, "black"),
            marker=MARKERS.get(name, "*"),
            ms=14 if name == "oracle" else 8,
            capsize=3,
            ls="none",
        )
        ax.annotate(
            NAMES.get(name, name), (row["tokens"], row["accuracy"]), (8, -14), textcoords="offset points"
        )
    ax.set_xscale("log")
    ticks = [tick for tick in (4, 8, 16, 32, 64, 128, 256) if tick < 2 * summary["tokens"].max()]
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.minorticks_off()
    ax.set(xlabel="mean tokens per response (log scale)", ylabel="accuracy", ylim=(0, 1.06))
    return figure


def accuracy_and_tokens(summary: pd.DataFrame) -> Figure:
    """Two panels over depth: what each format gets right, and what it costs."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    staircase(summary, ax=left)
    left.get_legend().remove()
    shade_tiers(right, int(summary["depth"].max()))
    for format, rows in summary.groupby("format", sort=False):
        right.plot(rows["depth"], rows["tokens"], color=COLOURS[format], marker=MARKERS[format], ms=5)
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


def loss_curves(runs: Mapping[str, pd.DataFrame], *, ax: Axes | None = None) -> Figure:
    """Training loss by step, a line per run; the first is the reference and is drawn pale."""
    figure, ax = _canvas(ax)
    for index, (name, rows) in enumerate(runs.items()):
        style = {"color": "0.65", "lw": 3} if index == 0 else {"color": _PALETTE[index - 1], "lw": 1.5}
        ax.plot(rows["step"], rows["loss"], label=name, **style)
    ax.set(xscale="log", yscale="log", xlabel="step (log scale)", ylabel="loss (nats per token, log scale)")
    ax.legend(frameon=False)
    return figure


def share_bars(shares: pd.DataFrame, *, ax: Axes | None = None) -> Figure:
    """Stacked bars: the share of each format (columns) in each tier (rows); other columns are grey."""
    formats = [format for format in ReasoningFormat if format in shares.columns]
    shares = shares[[*formats, *(name for name in shares.columns if name not in formats)]]
    figure, ax = _stacked(shares, [COLOURS.get(name, (0.7,) * 3) for name in shares.columns], "{:.0%}", ax)
    ax.set(xlabel="share of responses", ylabel="tier", xlim=(0, 1))
    return figure


def kept_and_dropped(fates: pd.DataFrame, *, ax: Axes | None = None) -> Figure:
    """Stacked bars: responses of each format (rows) that were kept, and dropped for each reason (columns)."""
    fates = fates[["kept", *(reason for reason in fates.columns if reason != "kept")]]
    figure, ax = _stacked(fates, [_PALETTE[2], *(_PALETTE[k] for k in (3, 1, 4, 5, 7, 8, 9))], "{:.0f}", ax)
    ax.set(xlabel="responses", ylabel="format")
    return figure


def _stacked(table: pd.DataFrame, colours: list[tuple], text: str, ax: Axes | None) -> tuple[Figure, Axes]:
    """Horizontal bars, one per row, stacked over the columns; parts that are too small carry no number."""
    figure, ax = _canvas(ax)
    names = [NAMES.get(row, row) for row in table.index]
    left = pd.Series(0.0, index=table.index)
    for column, colour in zip(table.columns, colours, strict=False):
        bars = ax.barh(names, table[column], left=left, color=colour, label=NAMES.get(column, column))
        labels = [text.format(v) if v >= 0.05 * table.sum(axis=1).max() else "" for v in table[column]]
        ax.bar_label(bars, labels, label_type="center", color="white")
        left += table[column]
    ax.invert_yaxis()
    ax.grid(visible=False)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.01), ncols=5, frameon=False)
    return figure, ax


def tokens_by_format(rows: pd.DataFrame, *, ax: Axes | None = None) -> Figure:
    """Mean tokens of each format, a group of bars per tier; each bar carries its number."""
    figure, ax = _canvas(ax)
    means = rows.groupby(["tier", "format"])["tokens"].mean().unstack()
    tiers = [tier for tier in TIER_SHADES if tier in means.index]
    formats = [format for format in ReasoningFormat if format in means.columns]
    for place, format in enumerate(formats):
        offset = (place - (len(formats) - 1) / 2) * 0.2
        places = [index + offset for index in range(len(tiers))]
        bars = ax.bar(places, means.loc[tiers, format], 0.19, color=COLOURS[format], label=NAMES[format])
        ax.bar_label(bars, fmt="%.0f", fontsize=9)
    ax.set_xticks(range(len(tiers)), tiers)
    ax.set(xlabel="tier", ylabel="mean tokens per completion")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.01), ncols=4, frameon=False)
    return figure


def shade_tiers(ax: Axes, deepest: int) -> None:
    """Shade the depths of the three tiers and name them."""
    for name, (low, high) in {"easy": (1, 2), "medium": (3, 6), "hard": (7, max(deepest, 7))}.items():
        if low <= deepest:
            ax.axvspan(low - 0.5, high + 0.5, color=TIER_SHADES[name], zorder=0, lw=0)
            place = ax.get_xaxis_transform()  # x in depths, y in parts of the axis
            ax.text((low + high) / 2, 1.015, name, ha="center", fontsize=9, color="0.25", transform=place)
    ax.set_xlim(0.5, deepest + 0.5)


def _canvas(ax: Axes | None) -> tuple[Figure, Axes]:
    if ax is None:
        return plt.subplots()
    return ax.figure, ax
