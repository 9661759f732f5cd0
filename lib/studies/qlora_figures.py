"""The figures of notebook 02."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure

from lib.dial import reach
from lib.formats import ReasoningFormat
from lib.studies.lesson_figures import staircase
from lib.studies.shared.figures import COLOURS, MARKERS, NAMES, PALETTE

PARTS = ("weights", "gradients", "optimiser", "activations")
CUT = 100  # GiB: longer bars are broken off, and say how long they are


def quantisation(weight: torch.Tensor, restored: torch.Tensor, levels: torch.Tensor) -> Figure:
    """Two panels: weights (out, in) over the largest of their block of 64, with the levels; their errors."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    blocks, filled = weight.reshape(-1, 64), {"histtype": "stepfilled", "color": "0.78", "ec": "none"}
    scaled = (blocks / blocks.abs().amax(1, keepdim=True)).flatten().numpy()
    left.hist(scaled, bins=81, **filled, label="weights of the base")
    for place, level in enumerate(levels.tolist()):
        name = "the 16 levels of NF4" if place == 0 else None
        left.axvline(level, color=PALETTE[0], lw=1, label=name)
    left.set(xlabel="weight / largest of its block", ylabel="number of weights", xticks=(-1, -0.5, 0, 0.5, 1))
    bins = torch.linspace(weight.min(), weight.max(), 80).numpy()
    right.hist(weight.flatten().numpy(), bins=bins, **filled, label="weights")
    error = (restored - weight).flatten().numpy()
    right.hist(error, bins=bins, color=PALETTE[1], histtype="step", lw=1.8, label="their errors in NF4")
    right.set(xlabel="value", ylabel="number of weights (log scale)", yscale="log")
    for ax in (left, right):
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False, fontsize=10)
    return figure


def memory_bars(plan: pd.DataFrame) -> Figure:
    """A bar for each size and method of `qlora.memory_plan`, made of its kinds; lines are cards."""
    table = plan.pivot_table(
        index=["size", "method"], columns="kind", values="gib", aggfunc="sum", sort=False
    )
    table = table[list(PARTS)]
    figure, ax = plt.subplots(figsize=(8, 5))
    places = [row + row // 3 * 0.7 for row in range(len(table))]
    left = pd.Series(0.0, index=table.index)
    for part, colour in zip(PARTS, (PALETTE[0], PALETTE[1], PALETTE[2], "0.75"), strict=True):
        width = table[part].clip(upper=(CUT - left).clip(lower=0))
        ax.barh(places, width, left=left.clip(upper=CUT), color=colour, label=part, ec="none")
        left += table[part]
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
    for place, gib in zip(places, left, strict=True):
        shown = f"{gib:.0f}" if gib >= 10 else f"{gib:.1f}"
        ax.text(min(gib, CUT) + 0.8, place, shown, va="center", fontsize=9, bbox=paper)
        if gib > CUT:
            edge = [CUT - 2.4, CUT - 1.6, CUT - 2.4, CUT - 1.6]
            ax.plot(edge, [place - 0.6, place - 0.2, place + 0.2, place + 0.6], color="white", lw=4)
    for card in (12, 24, 80):
        ax.axvline(card, color="0.3", lw=0.9, ls="--", zorder=0)
        name = f"card of {card} GiB" if card == 80 else f"{card}"
        ax.text(card + 0.6, -1.0, name, fontsize=8.5, color="0.25", va="center")
    ax.set_yticks(places, [f"{size}  {method}" for size, method in table.index])
    ax.set(xlabel="memory to train (GiB)", xlim=(0, CUT + 10), ylim=(max(places) + 0.7, -1.7))
    ax.grid(visible=False)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False)
    return figure


def format_losses(metrics: pd.DataFrame, levels: Mapping[str, float]) -> Figure:
    """Training loss of each format by step, and at the right its level in `levels`, where it is known."""
    figure, ax = plt.subplots(figsize=(8, 4.4))
    for format in ReasoningFormat:
        if (column := f"loss_{format}") in metrics:
            rows = metrics.dropna(subset=column)
            look = {"color": COLOURS[format], "marker": MARKERS[format], "label": NAMES[format], "ms": 5}
            ax.plot(rows["step"], rows[column], **look)
        if format in levels:
            ax.axhline(levels[format], color=COLOURS[format], ls="--", lw=1.2)
    if levels:
        ax.plot([], [], color="0.3", ls="--", lw=1.2, label="sure within reach,\nguessing beyond")
    ax.set(yscale="log", xlabel="step", ylabel="loss (nats per token, log scale)")
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def reaches(summaries: Mapping[str, pd.DataFrame], trained_to: int) -> Figure:
    """A staircase for each policy, side by side; what lies beyond the depths of training is marked."""
    figure, axes = plt.subplots(1, len(summaries), figsize=(11, 4), sharey=True, layout="constrained")
    for ax, (name, summary) in zip(axes, summaries.items(), strict=True):
        staircase(summary, reach={format: reach(format) for format in ReasoningFormat}, ax=ax)
        ax.get_legend().remove()
        ax.axvline(trained_to + 0.5, color="black", lw=1.4)
        ax.set_title(name, pad=22)
        ax.tick_params(axis="x", labelsize=9)
    axes[-1].set_ylabel("")
    lines = [line for line in axes[0].get_lines() if not line.get_label().startswith("_")]
    figure.legend(handles=lines, loc="outside lower center", ncols=4, frameon=False)
    return figure


def merge_curves(table: pd.DataFrame) -> Figure:
    """Accuracy by depth of each way to merge (column `way`), a panel per forced format (`mode`)."""
    figure, axes = plt.subplots(1, 4, figsize=(11, 3.2), sharey=True, layout="constrained")
    for ax, format in zip(axes, ReasoningFormat, strict=True):
        mine = table[table["mode"] == format]
        for place, (way, rows) in enumerate(mine.groupby("way", sort=False)):
            rates = rows.groupby("depth")["correct"].mean()
            colour = ("black", PALETTE[4], PALETTE[9])[place]  # none of a format's
            ax.plot(rates.index, rates, color=colour, marker="osD"[place], ms=4, label=way)
        ax.axvline(reach(format) + 0.5, color="0.5", ls=":", lw=1.2)
        ax.set(title=NAMES[format], xlabel="depth", ylim=(-0.03, 1.05), xticks=range(2, 13, 2))
    axes[0].set_ylabel("accuracy")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return figure
