"""Notebook 01: its tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.dial import reach
from lib.formats import ReasoningFormat
from lib.measure.intervals import wilson_interval
from lib.sources import SOURCES
from lib.studies.lesson_figures import shade_tiers, staircase
from lib.studies.paired import bootstrap_mean, bootstrap_paired
from lib.studies.sft_set import SFTSet
from lib.studies.shared.figures import COLOURS, MARKERS, NAMES, PALETTE
from lib.tasks import Task

FORMATS = [format.value for format in ReasoningFormat]
REASONED = FORMATS[1:]
# What the sets of the study are called, and how they are drawn: colour for the teacher, dashes for "all".
SETS: dict[str, tuple[str, dict[str, Any]]] = {
    "exact": ("exact teacher", {"color": "black"}),
    "filtered": ("erring, filtered", {"color": PALETTE[4]}),
    "unfiltered": ("erring, all", {"color": PALETTE[4], "ls": "--"}),
    "careless_filtered": ("careless, filtered", {"color": PALETTE[9]}),
    "careless_unfiltered": ("careless, all", {"color": PALETTE[9], "ls": "--"}),
}


# ---- what became of a teacher's responses ------------------------------------------------------


def fates(built: SFTSet, asked: Sequence[Task]) -> pd.DataFrame:
    """A row for each response: id, format, fate ("kept", or why it was dropped), tier and depth."""
    kept = [(row["id"], row["format"], "kept") for row in built.rows]
    dropped = [(drop.id, drop.format, drop.reason) for drop in built.drops if drop.format]
    known = pd.DataFrame(
        [(task.id, task.tier, task.depth) for task in asked], columns=["id", "tier", "depth"]
    )
    table = pd.DataFrame(kept + dropped, columns=["id", "format", "fate"])
    return table.merge(known.drop_duplicates("id"), on="id", validate="many_to_one")


def fate_table(table: pd.DataFrame) -> pd.DataFrame:
    """Responses by tier and format, and by what became of them; "kept" first."""
    counts = pd.crosstab([table["tier"], table["format"]], table["fate"])
    counts = counts[["kept", *(reason for reason in counts if reason != "kept")]]
    tiers = [tier for tier in ("easy", "medium", "hard") if tier in counts.index]
    order = pd.MultiIndex.from_product([tiers, FORMATS], names=["tier", "format"])
    return counts.reindex(order, fill_value=0).rename(index=NAMES).rename_axis(columns=None)


def kept_by_depth(table: pd.DataFrame) -> Figure:
    """The share that is kept, by depth and format, with Wilson intervals and the formats' reach."""
    lines = []
    for (format, depth), rows in table.assign(kept=table["fate"] == "kept").groupby(["format", "depth"]):
        low, high = wilson_interval(int(rows["kept"].sum()), len(rows))
        lines.append((format, depth, rows["kept"].mean(), low, high))
    columns = ["format", "depth", "accuracy", "accuracy_low", "accuracy_high"]
    summary = pd.DataFrame(lines, columns=columns)
    order = {format: place for place, format in enumerate(FORMATS)}
    summary = summary.sort_values("format", key=lambda names: names.map(order), kind="stable")
    figure = staircase(summary, reach={format: reach(format) for format in ReasoningFormat})
    figure.axes[0].set_ylabel("share kept")
    return figure


# ---- what the sets of `strictness` teach -------------------------------------------------------


def by_depth(answers: pd.DataFrame, column: str) -> pd.DataFrame:
    """Means of a column by method, mode and depth, with intervals by bootstrap over seeds and questions."""
    lines = [
        (*cell, *bootstrap_mean(rows, column, draws=1000))
        for cell, rows in answers.groupby(["method", "mode", "depth"])
    ]
    return pd.DataFrame(lines, columns=["method", "mode", "depth", "mean", "low", "high"])


def strictness_panels(answers: pd.DataFrame, column: str, ylabel: str) -> Figure:
    """A panel for each format, a line for each set: means by depth with their intervals."""
    summary = by_depth(answers, column)
    figure, axes = plt.subplots(2, 2, figsize=(9, 6), sharex=True, sharey=True, layout="constrained")
    for ax, format in zip(axes.flat, ReasoningFormat, strict=True):
        _lines(ax, summary[summary["mode"] == format])
        ax.axvline(reach(format) + 0.5, color="0.4", ls=":", lw=1.2)
        ax.set_title(NAMES[format], pad=16)
    for ax in axes[-1]:
        ax.set_xlabel("depth of the question (operations)")
    for ax in axes[:, 0]:
        ax.set_ylabel(ylabel)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return figure


def _lines(ax: Axes, summary: pd.DataFrame) -> None:
    """A line with its band for each set."""
    shade_tiers(ax, int(summary["depth"].max()))
    for method, (name, look) in SETS.items():
        rows = summary[summary["method"] == method].sort_values("depth")
        if rows.empty:
            continue
        ax.fill_between(rows["depth"], rows["low"], rows["high"], color=look["color"], alpha=0.15, lw=0)
        ax.plot(rows["depth"], rows["mean"], label=name, lw=1.6, **look)
    ax.set(ylim=(0, 1.04), xticks=range(1, int(summary["depth"].max()) + 1))


def choices(free: pd.DataFrame, methods: Sequence[str]) -> Figure:
    """A panel for each set: the share of each format by depth where the model chooses, with intervals."""
    figure, axes = plt.subplots(
        1, len(methods), figsize=(9, 3.4), sharey=True, layout="constrained", squeeze=False
    )
    for ax, method in zip(axes[0], methods, strict=True):
        shade_tiers(ax, int(free["depth"].max()))
        for format in ReasoningFormat:
            rows = free[free["method"] == method].assign(
                mode=format.value, chosen=free["used"].eq(format.value)
            )
            share = by_depth(rows, "chosen")
            ax.fill_between(
                share["depth"], share["low"], share["high"], color=COLOURS[format], alpha=0.2, lw=0
            )
            look = {"color": COLOURS[format], "marker": MARKERS[format], "label": NAMES[format]}
            ax.plot(share["depth"], share["mean"], ms=4, **look)
        ax.set(xlabel="depth of the question (operations)", ylim=(0, 1.02))
        ax.set_title(SETS[method][0], pad=16)
    axes[0, 0].set_ylabel("share of responses")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def against_exact(answers: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of each set minus the exact one's, where a format reaches, paired: mean, low, high."""
    reached = answers[answers["depth"] <= answers["mode"].map(reach)]
    lines = {}
    for method in [name for name in SETS if name != "exact" and name in set(answers["method"])]:
        for format in [format for format in ReasoningFormat if format in set(reached["mode"])]:
            ours, exact = (
                reached[(reached["method"] == name) & (reached["mode"] == format)]
                for name in (method, "exact")
            )
            lines[method, format.value] = bootstrap_paired(ours, exact, "correct")
    return pd.DataFrame.from_dict(lines, orient="index", columns=["mean", "low", "high"])


def totals(answers: pd.DataFrame, summaries: Mapping[str, Sequence[Mapping[str, Any]]]) -> pd.DataFrame:
    """Of each set: rows unlike the exact teacher's (with reasoning, long CoT); valid and right when free."""
    free = answers[answers["set"] == "free"]
    free = free.assign(valid=free["used"] != "invalid").groupby("method")[["valid", "correct"]].mean()
    unlike = {
        method: {"false_rows": false_rows(found), "false_long": false_rows(found, [ReasoningFormat.LONG_COT])}
        for method, found in summaries.items()
    }
    both = pd.concat([pd.DataFrame.from_dict(unlike, orient="index"), free], axis=1)
    return both.loc[[name for name in SETS if name in free.index]]


def false_rows(summaries: Sequence[Mapping[str, Any]], formats: Sequence[str] = REASONED) -> float:
    """The share of rows unlike the exact teacher's, of the rows of some sets in some formats."""
    cells = [n for found in summaries for name, n in found["set"].items() if name.split("-")[1] in formats]
    rows, true = map(sum, zip(*cells, strict=True))
    return 1 - true / rows


def strictness_table(gap: pd.DataFrame, greedy: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """`against_exact`, sampled and greedy, and `totals`: in per cent, and in points with intervals."""
    points = pd.concat([_in_points(gap), _in_points(greedy).add_suffix(", greedy")], axis=1)
    points = points.reindex(found.index).fillna("")
    names = {"false_rows": "rows unlike the exact ones", "false_long": "of long CoT", "correct": "right"}
    table = pd.concat([found.rename(columns=names).map("{:.1%}".format), points], axis=1)
    return table.rename(index={name: title for name, (title, _) in SETS.items()})


def _in_points(gap: pd.DataFrame) -> pd.DataFrame:
    """A row per set and a column per format, as text."""
    shown = gap.apply(
        lambda row: f"{100 * row['mean']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]", axis=1
    )
    shown.index = pd.MultiIndex.from_tuples(gap.index)
    return shown.unstack(sort=False).rename(columns=NAMES)


# ---- the datasets -------------------------------------------------------------------------------


def sources_table() -> pd.DataFrame:
    """Every source with its tier, kind, licence and hub repository."""
    columns = ["tier", "kind", "licence", "hub"]
    rows = {name: {column: getattr(source, column) for column in columns} for name, source in SOURCES.items()}
    return pd.DataFrame.from_dict(rows, orient="index")
