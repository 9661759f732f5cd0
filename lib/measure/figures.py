"""The figures of the course, in one look: the same colour, marker and name for a format everywhere."""

from __future__ import annotations

from collections.abc import Collection
from io import BytesIO

import matplotlib.pyplot as plt
import pandas as pd
import PIL.Image
import seaborn as sns
from IPython.display import Image, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL.PngImagePlugin import PngInfo

from lib.formats import ReasoningFormat

PALETTE = sns.color_palette("colorblind")
COLOURS: dict[str, tuple] = dict(zip(ReasoningFormat, PALETTE[:4], strict=True))
MARKERS: dict[str, str] = dict(zip(ReasoningFormat, "osD^", strict=True))
NAMES: dict[str, str] = dict(zip(ReasoningFormat, ("direct", "short CoT", "code", "long CoT"), strict=True))
METHODS = {"sft": "SFT", "grpo": "GRPO", "ada_grpo": "Ada-GRPO"}


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


def accuracy_tokens_plane(summary: pd.DataFrame, *, above: Collection[str] = ()) -> Figure:
    """One point per policy: mean tokens against accuracy, with 95 % intervals; up and left is better.

    Names stand below their points on the right, those in `above` above them on the left.
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
        ax.annotate(
            NAMES.get(name, name),
            (x, y),
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


def share_bars(shares: pd.DataFrame) -> Figure:
    """Stacked bars: the share of each format (columns) in each tier (rows); other columns are grey.

    Shares are rounded so that the whole percents of a row sum to 100.
    """
    formats = [format for format in ReasoningFormat if format in shares.columns]
    shares = shares[[*formats, *(name for name in shares.columns if name not in formats)]]
    shares = shares.apply(_whole_percents, axis=1)
    figure, ax = stacked_bars(shares, [COLOURS.get(name, (0.7,) * 3) for name in shares.columns], "{:.0%}")
    ax.set(xlabel="share of responses", ylabel="tier", xlim=(0, 1))
    return figure


def _whole_percents(shares: pd.Series) -> pd.Series:
    """Shares that sum to 1 as whole percents that do: those that lose most by rounding down get one more."""
    percents = (100 * shares).floordiv(1)
    lost = (100 * shares - percents).sort_values(ascending=False, kind="stable")
    percents[lost.index[: round(100 * shares.sum() - percents.sum())]] += 1
    return percents / 100


def stacked_bars(table: pd.DataFrame, colours: list[tuple], text: str) -> tuple[Figure, Axes]:
    """Horizontal bars, one per row, stacked over the columns; parts that are too small carry no number."""
    figure, ax = plt.subplots()
    names = [NAMES.get(row, row) for row in table.index]
    left = pd.Series(0.0, index=table.index)
    for column, colour in zip(table.columns, colours, strict=False):
        bars = ax.barh(names, table[column], left=left, color=colour, label=NAMES.get(column, column))
        labels = [text.format(v) if v >= 0.05 * table.sum(axis=1).max() else "" for v in table[column]]
        ax.bar_label(bars, labels, label_type="center", color=_readable_on(colour))
        left += table[column]
    ax.invert_yaxis()
    ax.grid(visible=False)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.01), ncols=5, frameon=False)
    return figure, ax


def _readable_on(colour: tuple) -> str:
    """Black or white, whichever stands out more, by the luminance of WCAG 2."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return "black" if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 else "white"


def grouped_bars(table: pd.DataFrame, *, ylabel: str, fmt: str = "%.2f") -> Figure:
    """Bars of each row side by side, one per column; rows and columns may be formats or any names."""
    figure, ax = plt.subplots()
    colours = [COLOURS.get(column, PALETTE[place]) for place, column in enumerate(table.columns)]
    named = table.rename(index=NAMES, columns=NAMES)
    named.plot.bar(ax=ax, color=colours, width=0.8, rot=0, xlabel="", ylabel=ylabel)
    for bars in ax.containers:
        ax.bar_label(bars, fmt=fmt, fontsize=8)
    ax.margins(y=0.1)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.01), ncols=len(table.columns), frameon=False)
    return figure
