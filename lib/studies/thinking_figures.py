"""Notebook 05's figures: both modes by level, losses at the start, while training, by depth, the plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from lib.studies.shared.figures import PALETTE

LOOK = {
    "thinking": {"color": "0.35", "marker": "^", "ls": ":"},
    "nothinking": {"color": PALETTE[1], "marker": "v", "ls": "--"},
    "adaptthink": {"color": PALETTE[0], "marker": "o", "ls": "-"},
    "free_start": {"color": PALETTE[2], "marker": "s", "ls": "-."},  # these three as on the plane
    "lower_rate": {"color": PALETTE[4], "marker": "P", "ls": ":"},
    "decision_only": {"color": PALETTE[9], "marker": "X", "ls": "-"},
}
SPARE = ((PALETTE[2], "s", "-."), (PALETTE[3], "D", "--"), (PALETTE[4], "P", ":"), (PALETTE[9], "X", "-"))
NAMES = {"thinking": "always thinking", "nothinking": "never thinking", "adaptthink": "AdaptThink"}
LOSSES = {  # colour and line, and the name in words
    "geometric_mean": (PALETTE[0], "-", "released (geometric_mean)"),
    "unadjusted": (PALETTE[2], "--", "unadjusted"),
    "sequence": (PALETTE[3], "-.", "published (sequence)"),
    "token": (PALETTE[4], ":", "token"),
}


def look(method: str, place: int = 0) -> dict[str, object]:
    """Colour, marker and line of a method; what has none of its own takes a spare one."""
    colour, marker, style = SPARE[place % len(SPARE)]
    return LOOK.get(method, {"color": colour, "marker": marker, "ls": style})


def _by_level(ax: Axes, name: str, levels: Sequence[float]) -> None:
    """An axis of difficulty: every level has a tick, every second one where there are many."""
    ax.set(xlabel=f"{name} of the question", xticks=list(levels)[:: 2 if len(levels) > 12 else 1])
    ax.tick_params(axis="x", labelsize=9)


def _looks(methods: Sequence[str]) -> dict[str, dict[str, object]]:
    spare = [method for method in methods if method not in LOOK]
    return {m: look(m, spare.index(m) if m in spare else 0) for m in methods}


# ---- before training ---------------------------------------------------------------------------


def pilot(answers: pd.DataFrame, level: str) -> Figure:
    """Three panels by level: accuracy and tokens of both modes, and where thinking raises the pass rate."""
    by_mode = answers.groupby([level, "mode"])[["correct", "tokens"]].mean().unstack()
    rates = answers.groupby([level, "task_id", "mode"])["correct"].mean().unstack()
    gains = (rates["thinking"] > rates["nothinking"]).groupby(level).mean()
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.2), layout="constrained")
    for mode in ("thinking", "nothinking"):
        for ax, name in zip(axes, ("correct", "tokens"), strict=False):
            ax.plot(by_mode.index, by_mode[name][mode], ms=5, label=NAMES[mode], **look(mode))
    axes[2].bar(gains.index, gains, color="0.5")
    labels = ("accuracy", "mean tokens", "thinking helps, share")
    for ax, label in zip(axes, labels, strict=True):
        ax.set(ylabel=label, ylim=(0, None))
        _by_level(ax, level, list(gains.index))
    axes[2].set_ylim(0, 1)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return figure


def weights(found: Mapping[str, pd.DataFrame]) -> Figure:
    """A panel per outcome: the size of each loss's weight (columns) over P (index), both log; 0 is a gap."""
    figure, axes = plt.subplots(1, len(found), figsize=(9, 3.2), sharey=True, layout="constrained")
    for ax, (title, table) in zip(axes, found.items(), strict=True):
        for name in table:
            sizes, (colour, style, label) = table[name].abs(), LOSSES[name]
            ax.plot(table.index, sizes.where(sizes > 0), color=colour, ls=style, lw=2, label=label)
        ax.set(xscale="log", yscale="log", title=title, xlabel="P(</think>) (log scale)")
    axes[0].set_ylabel("size of the weight (log scale)")
    axes[-1].text(0.05, 0.08, "no line: the weight is 0", transform=axes[-1].transAxes)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def starts(curves: Mapping[str, np.ndarray]) -> Figure:
    """P(skip) over updates of the toy, both axes log; a line's name begins with its loss and a comma."""
    figure, ax = plt.subplots(figsize=(5.6, 4), layout="constrained")
    for (name, curve), colour in zip(curves.items(), (PALETTE[0], PALETTE[3], PALETTE[1]), strict=False):
        loss, _, step = name.partition(",")
        _, style, label = LOSSES[loss]
        ax.plot(range(1, len(curve)), curve[1:], color=colour, ls=style, lw=2, label=f"{label},{step}")
    ax.axhline(0.1, color="0.4", lw=0.8)
    ax.set(xscale="log", yscale="log", ylim=(1e-7, 2))
    ax.set(xlabel="update (log scale)", ylabel="P(skip) (log scale)")
    figure.legend(loc="outside upper center", ncols=1, frameon=False)
    return figure


# ---- while training ----------------------------------------------------------------------------


def watched(live: pd.DataFrame, others: pd.DataFrame, tiers: Sequence[str]) -> Figure:
    """Free responses while training, two panels by tier and one for other first words.

    Lines: the live run; bands: from lowest to highest of the other seeds. Rows have `step` and `seed`.
    """
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.3), layout="constrained")
    for ax, name, label in (
        (axes[0], "nothinking_ratio", "NoThinking ratio"),
        (axes[1], "accuracy", "accuracy"),
    ):
        for tier, colour, style in zip(tiers, PALETTE, ("-", "--", ":", "-.", "-"), strict=False):
            _line(ax, live, others, f"{tier}/{name}", color=colour, ls=style, label=tier)
        ax.set(ylabel=label)
    _line(axes[2], live, others, "other_start_ratio", color="0.3", ls="-")
    axes[2].set(ylabel="share of other first words")
    for ax in axes:
        ax.set(xlabel="update", ylim=(-0.03, 1.03))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=5, frameon=False)
    return figure


def _line(ax: Axes, live: pd.DataFrame, others: pd.DataFrame, name: str, **how: object) -> None:
    if name in others:
        band = others.groupby("step")[name].agg(["min", "max"])
        ax.fill_between(band.index, band["min"], band["max"], color=how["color"], alpha=0.2, lw=0)
    ax.plot(live["step"], live[name], marker="o", ms=3.5, **how)


def mended(runs: Mapping[str, pd.DataFrame]) -> Figure:
    """Other first words and accuracy over the updates: a thin line per seed, a thick one for the mean."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.1), layout="constrained")
    labels = {"other_start_ratio": "share of other first words", "accuracy": "accuracy of free responses"}
    for ax, (name, label) in zip(axes, labels.items(), strict=True):
        for (method, rows), (colour, _, style) in zip(runs.items(), _groups()[2:], strict=False):
            for _, one in rows.groupby("seed"):
                ax.plot(one["step"], one[name], color=colour, ls=style, lw=0.8, alpha=0.5)
            mean = rows.groupby("step")[name].mean()
            ax.plot(mean.index, mean, color=colour, ls=style, lw=2.5, label=method)
        ax.set(xlabel="update", ylabel=label)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return figure


# ---- by depth ----------------------------------------------------------------------------------


def depth_lines(
    lines: pd.DataFrame,
    panels: Mapping[str, str],
    *,
    names: Mapping[str, str] = NAMES,
    trained: float | None = None,
) -> Figure:
    """A panel for each column over depth, a line per method with its interval (`_low`, `_high`).

    `trained` draws the end of the training range.
    """
    figure, axes = plt.subplots(
        1, len(panels), figsize=(max(6.0, 3.5 * len(panels)), 3.4), squeeze=False, layout="constrained"
    )
    looks = _looks(list(lines["method"].unique()))
    for ax, (name, label) in zip(axes[0], panels.items(), strict=True):
        for method, rows in lines.groupby("method", sort=False):
            band = (rows[f"{name}_low"].astype(float), rows[f"{name}_high"].astype(float))
            ax.fill_between(rows["depth"], *band, color=looks[method]["color"], alpha=0.2, lw=0)
            ax.plot(rows["depth"], rows[name], ms=4, label=names.get(method, method), **looks[method])
        if trained is not None:
            ax.axvline(trained + 0.5, color="black", lw=1, ls="--")
        ax.set_ylabel(label)
        _by_level(ax, "depth", sorted(lines["depth"].unique()))
        ax.set_ylim(*((0, None) if name == "tokens" else (-0.03, 1.04)))
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure


# ---- the plane ---------------------------------------------------------------------------------


def plane(
    routers: pd.DataFrame, policies: pd.DataFrame, *, zoom: tuple[float, float, float, float] | None
) -> Figure:
    """Tokens against accuracy, whole and, where `zoom` says what, larger beside it.

    Routers are lines (`thinking_bounds.points`), policies points with the interval of their accuracy: policy,
    group, accuracy, tokens. Those of one group are joined by a line, in order; each has its name once, in the
    larger panel where it is there.
    """
    count = 2 if zoom else 1
    figure, axes = plt.subplots(1, count, figsize=(5.25 * count, 5.2), squeeze=False, layout="constrained")
    left, right, low, high = zoom or (0, 0, 0, 0)
    large = policies["tokens"].between(left, right) & policies["accuracy"].between(low, high)
    for ax, named in zip(axes[0], (~large, large), strict=False):
        _routers(ax, routers)
        groups = zip(policies.groupby("group", sort=False), _groups(), strict=False)
        for place, ((group, rows), (colour, marker, style)) in enumerate(groups):
            sides = rows["accuracy"] - rows["accuracy_low"], rows["accuracy_high"] - rows["accuracy"]
            bars = [side.clip(lower=0) for side in sides]
            ax.errorbar(
                rows["tokens"], rows["accuracy"], bars, color=colour, marker=marker, ls=style, lw=0.8, ms=7,
                elinewidth=0.8, mec="white", mew=0.5, zorder=3, label=group,
            )  # fmt: skip
            if zoom:
                _named(ax, rows[named[rows.index]], colour, SIDES[place % len(SIDES)])
        ax.set(xlabel="mean tokens per response", ylabel="accuracy")
    if zoom:
        axes[0][1].set(xlim=zoom[:2], ylim=zoom[2:], title="the corner, larger")
    handles = axes[0][0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4 if zoom else 2, frameon=False)
    return figure


SIDES = ((7, 4, "left"), (7, -12, "left"), (7, 5, "left"), (-7, 5, "right"), (-7, -13, "right"))


def _named(ax: Axes, rows: pd.DataFrame, colour: object, side: tuple[int, int, str]) -> None:
    """The name of each policy in its point's colour, on the side of its group: groups get out of each
    other's way.
    """
    across, up, anchor = side
    for row in rows.itertuples():
        place = {"xytext": (across, up), "textcoords": "offset points", "ha": anchor, "zorder": 5}
        name = ax.annotate(row.policy, (row.tokens, row.accuracy), color=colour, fontsize=10, **place)
        name.set_path_effects([withStroke(linewidth=3, foreground="white")])


def _groups() -> list[tuple[object, str, str]]:
    order = (LOOK["thinking"], LOOK["nothinking"], LOOK["adaptthink"])
    return [*((one["color"], one["marker"], "-") for one in order), *SPARE]


def _routers(ax: Axes, routers: pd.DataFrame) -> None:
    """Thresholds and probes as lines from setting to setting, oracles as hollow marks, which leave a point
    within them to be seen, chance as a straight line.
    """
    ends = routers[routers["router"] == "threshold"].sort_values("tokens").iloc[[0, -1]]
    ax.plot(ends["tokens"], ends["accuracy"], color="0.6", ls=":", label="random mixture", zorder=0)
    known = routers[routers["setting"] != ""].groupby("router", sort=False)
    looks = ({"color": "0.78", "lw": 5}, {"color": "black", "ls": "--", "marker": ".", "lw": 1.2})
    for (name, rows), how in zip(known, looks, strict=False):
        rows = rows.sort_values("tokens")
        ax.plot(rows["tokens"], rows["accuracy"], label=name, zorder=1, **how)
    stars = routers[routers["setting"] == ""]
    for (_, row), (marker, size) in zip(stars.iterrows(), (("*", 22), ("p", 14), ("h", 14)), strict=False):
        how = {"marker": marker, "ms": size, "mec": "black", "mfc": "none", "ls": "none", "zorder": 2}
        ax.plot([row["tokens"]], [row["accuracy"]], label=row["router"], **how)
