"""The figures of the course, in one look: the same colour, marker and name for a format everywhere."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from io import BytesIO
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import PIL.Image
import seaborn as sns
import torch
from IPython.display import Image, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL.PngImagePlugin import PngInfo

from lib.formats import ReasoningFormat
from lib.measure.intervals import seed_interval

_PALETTE = sns.color_palette("colorblind")
COLOURS: dict[str, tuple] = dict(
    zip(ReasoningFormat, (_PALETTE[0], _PALETTE[1], _PALETTE[2], _PALETTE[3]), strict=True)
)
MARKERS: dict[str, str] = dict(zip(ReasoningFormat, "osD^", strict=True))
NAMES: dict[str, str] = dict(zip(ReasoningFormat, ("direct", "short CoT", "code", "long CoT"), strict=True))
METHODS = {"sft": "SFT", "grpo": "GRPO", "ada_grpo": "Ada-GRPO"}
TIER_SHADES = {"easy": "0.97", "medium": "0.93", "hard": "0.88"}


def use_style() -> None:
    """Set the look of all figures, and let tables show whole sentences; call it once, in the set-up cell."""
    pd.set_option("display.max_colwidth", None)
    sns.set_theme(context="notebook", style="ticks", palette="colorblind")
    plt.rcParams.update({"figure.figsize": (7, 4), "figure.dpi": 100, "axes.grid": True, "grid.alpha": 0.3})


def show(figure: Figure, alt: str) -> None:
    """Display a figure as a PNG that carries its description, for readers who cannot see it.

    256 colours are plenty for lines and bars, and make the notebook's file a third of the size.
    """
    drawn, small, description = BytesIO(), BytesIO(), PngInfo()
    figure.savefig(drawn, format="png", bbox_inches="tight")
    plt.close(figure)
    description.add_text("Description", alt)
    image = PIL.Image.open(drawn).convert("RGB").quantize(256, dither=PIL.Image.Dither.NONE)
    image.save(small, format="PNG", optimize=True, pnginfo=description)
    display(Image(small.getvalue(), format="png", alt=alt))


def staircase(
    summary: pd.DataFrame, *, reach: Mapping[str, int] | None = None, ax: Axes | None = None
) -> Figure:
    """Accuracy by depth, a line per format with its 95 % interval; `reach` marks the predicted steps."""
    figure, ax = _canvas(ax)
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


def accuracy_tokens_plane(
    summary: pd.DataFrame, *, above: Collection[str] = (), ax: Axes | None = None
) -> Figure:
    """One point per policy: mean tokens against accuracy, with 95 % intervals; up and left is better.

    Names stand below their points on the right, those in `above` above them on the left.
    """
    figure, ax = _canvas(ax)
    for _, row in summary.iterrows():
        name = row["policy"]
        ax.errorbar(
            row["tokens"],
            row["accuracy"],
            xerr=[[row["tokens"] - row["tokens_low"]], [row["tokens_high"] - row["tokens"]]],
            # at a rate of 1 the upper bound may lie below it by a rounding error
            yerr=[
                [row["accuracy"] - row["accuracy_low"]],
                [max(0.0, row["accuracy_high"] - row["accuracy"])],
            ],
            color=COLOURS.get(name, "black"),
            marker=MARKERS.get(name, "*"),
            ms=14 if name == "oracle" else 8,
            capsize=3,
            ls="none",
        )
        ax.annotate(
            NAMES.get(name, name),
            (row["tokens"], row["accuracy"]),
            (0, 9) if name in above else (8, -14),
            textcoords="offset points",
            ha="right" if name in above else "left",
        )
    ax.set_xscale("log")
    ticks = [tick for tick in (4, 8, 16, 32, 64, 128, 256) if tick < 2 * summary["tokens"].max()]
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.minorticks_off()
    ax.set(xlabel="mean tokens per response (log scale)", ylabel="accuracy", ylim=(0, 1.1))
    return figure


def accuracy_and_tokens(summary: pd.DataFrame) -> Figure:
    """Two panels over depth: what each format gets right, and what it costs."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    staircase(summary, ax=left)
    left.get_legend().remove()
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


def format_curves(
    live: Mapping[str, pd.DataFrame], reference: Mapping[str, pd.DataFrame] | None = None
) -> Figure:
    """Shares of the formats by step: a row of panels per method, a panel per tier.

    Lines are the live run, smoothed over eight steps. Behind them, where given, the 95 % interval of the mean
    over the seeds of the reference runs.
    """
    tiers = [t for t in TIER_SHADES if any(f"{t}/accuracy" in rows for rows in live.values())] or [""]
    figure, axes = plt.subplots(
        len(live),
        len(tiers),
        figsize=(2.6 * len(tiers) + 0.8, 2.2 * len(live)),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for row, (method, rows) in zip(axes, live.items(), strict=True):
        for ax, tier in zip(row, tiers, strict=True):
            for format in ReasoningFormat:
                name = f"{tier}/format/{format}_share".removeprefix("/")
                if reference and name in reference.get(method, ()):
                    band = seed_band(reference[method], name)
                    ax.fill_between(
                        band.index, band["low"], band["high"], color=COLOURS[format], alpha=0.25, lw=0
                    )
                smooth = rows[name].rolling(8, min_periods=1).mean()
                ax.plot(rows["step"], smooth, color=COLOURS[format], label=NAMES[format], lw=1.8)
            ax.set(ylim=(0, 1.02), title=f"{METHODS.get(method, method)}, {tier}".removesuffix(", "))
        row[0].set_ylabel("share of responses")
    for ax in axes[-1]:
        ax.set_xlabel("update")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def grouped_bars(table: pd.DataFrame, *, ylabel: str, fmt: str = "%.2f", ax: Axes | None = None) -> Figure:
    """Bars of each row side by side, one per column; rows and columns may be formats or any names."""
    figure, ax = _canvas(ax)
    colours = [COLOURS.get(column, _PALETTE[place]) for place, column in enumerate(table.columns)]
    named = table.rename(index=NAMES, columns=NAMES)
    named.plot.bar(ax=ax, color=colours, width=0.8, rot=0, xlabel="", ylabel=ylabel)
    for bars in ax.containers:
        ax.bar_label(bars, fmt=fmt, fontsize=8)
    ax.margins(y=0.1)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.01), ncols=len(table.columns), frameon=False)
    return figure


def budget_curves(summary: pd.DataFrame, *, ax: Axes | None = None) -> Figure:
    """Accuracy with its 95 % interval against mean tokens, a line per policy, a point per budget."""
    figure, ax = _canvas(ax)
    for place, (policy, rows) in enumerate(summary.groupby("policy", sort=False)):
        colour, rows = _PALETTE[(0, 3)[place % 2]], rows.sort_values("budget")
        _accuracy_line(ax, rows, "tokens", color=colour, marker="o^"[place % 2], label=policy)
        small = {"textcoords": "offset points", "fontsize": 8, "color": colour}
        for point in rows.itertuples():
            ax.annotate(f"{point.budget:.0f}", (point.tokens, point.accuracy), (3, -12), **small)
    ax.set(xlabel="mean tokens per response (at each point: the budget)", ylabel="accuracy", ylim=(0, 1.04))
    ax.legend(frameon=False, loc="lower right")
    return figure


def _accuracy_line(ax: Axes, rows: pd.DataFrame, x: str, **look: Any) -> None:
    """Accuracy over a column, with its interval behind it."""
    ax.fill_between(
        rows[x], rows["accuracy_low"], rows["accuracy_high"], color=look["color"], alpha=0.2, lw=0
    )
    ax.plot(rows[x], rows["accuracy"], ms=5, **look)


def _look(format: str) -> dict[str, Any]:
    """How the points of a format are drawn and named."""
    return {"color": COLOURS[format], "marker": MARKERS[format], "label": NAMES[format]}


def seed_band(runs: pd.DataFrame, name: str) -> pd.DataFrame:
    """The 95 % interval of the mean over seeds at each step, inside [0, 1]: columns low and high."""
    intervals = runs.groupby("step")[name].apply(lambda values: seed_interval(values)[1:])
    return pd.DataFrame(intervals.tolist(), index=intervals.index, columns=["low", "high"]).clip(0, 1)


def tokens_by_format(rows: pd.DataFrame, *, ax: Axes | None = None) -> Figure:
    """Mean tokens of each format, a group of bars per tier; each bar carries its number."""
    means = rows.groupby(["tier", "format"])["tokens"].mean().unstack()
    tiers = [tier for tier in TIER_SHADES if tier in means.index]
    formats = [format for format in ReasoningFormat if format in means.columns]
    return grouped_bars(means.loc[tiers, formats], ylabel="mean tokens per completion", fmt="%.0f", ax=ax)


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


def quantisation(weight: torch.Tensor, restored: torch.Tensor, levels: torch.Tensor) -> Figure:
    """Two panels: weights (out, in) over the largest of their block of 64, with the levels; their errors."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    blocks = weight.reshape(-1, 64)
    left.hist((blocks / blocks.abs().amax(1, keepdim=True)).flatten().numpy(), bins=120, color="0.7")
    for level in levels.tolist():
        left.axvline(level, color=_PALETTE[0], lw=0.8)
    left.set(xlabel="weight / largest of its block", ylabel="number of weights", xticks=(-1, -0.5, 0, 0.5, 1))
    bins = torch.linspace(weight.min(), weight.max(), 100).numpy()
    right.hist(weight.flatten().numpy(), bins=bins, color="0.8", label="weight")
    error = (restored - weight).flatten().numpy()
    right.hist(error, bins=bins, color=_PALETTE[1], histtype="step", lw=1.5, label="error of NF4")
    right.set(xlabel="value", ylabel="number of weights (log scale)", yscale="log")
    right.legend(frameon=False)
    return figure


def memory_bars(plan: pd.DataFrame, *, ax: Axes | None = None) -> Figure:
    """Memory to train (`gb`): a group of bars per `size`, a bar per `method`; lines mark common cards."""
    figure, ax = _canvas(ax)
    sns.barplot(plan, x="size", y="gb", hue="method", ax=ax)
    for card in (8, 24, 80):
        ax.axhline(card, color="0.3", lw=0.8, ls="--")
        ax.text(-0.48, card * 1.06, f"{card} GB card", fontsize=8, color="0.3")
    ax.set(yscale="log", xlabel="parameters of the base", ylabel="memory to train (GB, log scale)")
    ax.legend(title=None, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def format_losses(metrics: pd.DataFrame, *, ax: Axes | None = None) -> Figure:
    """Training loss of each format by step, from the columns `loss_<format>` of a run's metrics."""
    figure, ax = _canvas(ax)
    for format in ReasoningFormat:
        if (column := f"loss_{format}") in metrics:
            rows = metrics.dropna(subset=column)
            ax.plot(rows["step"], rows[column], **_look(format))
    ax.set(yscale="log", xlabel="step", ylabel="loss (nats per token, log scale)")
    ax.legend(frameon=False)
    return figure
