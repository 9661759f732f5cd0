"""What notebook 06 shows of its own run: one question asked in several ways, bounds, choices by depth."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure

from lib.bandit.llms import LLM, Request
from lib.dial import frozen_llm
from lib.dial.world import MAX_DEPTH, Question
from lib.studies import off_policy
from lib.studies.bandits import SPACE
from lib.studies.shared.figures import PALETTE

INSTRUCTIONS = dict(zip(frozen_llm.STYLES, ("o", "s", "^"), strict=True))


def asked_in(llm: LLM, question: Question, ways: Sequence[tuple[str, int]]) -> pd.DataFrame:
    """One question asked greedily with each (instruction, steps): the reply, and whether it is right."""
    prompts = [frozen_llm.prompt(question, style, steps) for style, steps in ways]
    replies = [reply or "" for reply in llm.ask([Request(text, temperature=0.0) for text in prompts])]
    right = [frozen_llm.read_answer(reply) == question.answer for reply in replies]
    lines = [reply.replace("\n", " / ") for reply in replies]
    table = pd.DataFrame(ways, columns=["instruction", "steps"])
    return table.assign(right=["yes" if mark else "NO" for mark in right], reply=lines)


def bounds(values: torch.Tensor) -> dict[str, float]:
    """Of the values (N, A) of every action: the oracle by kind and depth, the best fixed one, random."""
    best = {"oracle": values.amax(1).mean(), "best_fixed": values.mean(0).max(), "random": values.mean()}
    return {name: value.item() for name, value in best.items()}


def chosen_by_depth(questions: Sequence[Question], actions: torch.Tensor) -> Figure:
    """Steps and instruction chosen at each depth, on what the table says is the best at these steps."""
    table = frozen_llm.read_table()
    table["value"] = table["right"] / table["asked"]
    rows = pd.DataFrame([SPACE.decode(action) for action in actions.tolist()])
    rows = rows.assign(kind=[frozen_llm.mixture(q) for q in questions], depth=[q.depth for q in questions])
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.7), sharey=True, dpi=68, layout="constrained")
    for ax, kind in zip(axes, frozen_llm.MIXTURES, strict=True):
        best = table[table["kind"] == kind].pivot_table(
            index="steps", columns="depth", values="value", aggfunc="max"
        )
        best = best.reindex(columns=range(1, MAX_DEPTH + 1))
        image = ax.pcolormesh(best.columns, range(len(best)), best, cmap="Greys", vmin=0, vmax=1, alpha=0.55)
        mine = rows[rows["kind"] == kind]
        counts = mine.groupby(["depth", "instruction", "steps"]).size().rename("n").reset_index()
        counts["share"] = counts["n"] / counts.groupby("depth")["n"].transform("sum")
        for (style, marker), colour in zip(INSTRUCTIONS.items(), PALETTE, strict=False):
            part = counts[counts["instruction"] == style]
            heights = [best.index.get_loc(steps) for steps in part["steps"]]
            size = 12 + 130 * part["share"]
            ax.scatter(part["depth"], heights, s=size, marker=marker, color=colour, label=style, zorder=3)
        warm = f"{kind}, temperature {mine['temperature'].mean():.1f}"
        ax.set(title=warm, xlabel="depth (turns)", xticks=range(1, MAX_DEPTH + 1, 2))
        ax.grid(False)
    axes[0].set_yticks(range(len(frozen_llm.STEPS)), frozen_llm.STEPS)
    axes[0].set_ylabel("steps asked for")
    figure.colorbar(image, ax=axes, label="best accuracy at these steps", shrink=0.9)
    handles = [
        plt.Line2D([], [], marker=marker, color=colour, ls="none", label=style)
        for (style, marker), colour in zip(INSTRUCTIONS.items(), PALETTE, strict=False)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def judged(
    rewards: torch.Tensor,
    actions: torch.Tensor,
    propensities: torch.Tensor,
    target: torch.Tensor,
    *,
    predicted: torch.Tensor,
    seed: int,
) -> pd.DataFrame:
    """Four estimates of a policy's value from a log (N,), each with its 95 % bootstrap interval.

    target: the probabilities (N, A) of the policy to judge; predicted: a reward model's rewards, (N, A).
    """
    at_logged = actions[:, None]
    weights = off_policy.importance_weights(target.gather(1, at_logged)[:, 0], propensities)
    direct = (target * predicted).sum(1)
    corrected = off_policy.doubly_robust(rewards, weights, predicted.gather(1, at_logged)[:, 0], direct)
    means = {"direct method": direct, "IPS": off_policy.ips(rewards, weights), "doubly robust": corrected}
    rows = {
        name: (values.mean().item(), *off_policy.bootstrap_interval(values, seed=seed))
        for name, values in means.items()
    }
    ends = off_policy.bootstrap_interval(rewards, weights, seed=seed)
    rows["SNIPS"] = (off_policy.snips(rewards, weights).item(), *ends)
    return pd.DataFrame(rows, index=["mean", "low", "high"]).T
