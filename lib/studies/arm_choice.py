"""How a policy chooses among its formats, what a budget does to it, and a router in its place (notebook 04).

Answers are rows as in lib.studies.arm_tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pandas as pd

from lib.dial import oracle_format
from lib.studies.arm_tables import DRAWS, FORMATS, LONG
from lib.studies.paired import bootstrap_mean

Rates = Mapping[int, Mapping[str, float]]  # by depth and format

# ---- does it choose well? ------------------------------------------------------------------------


def chosen_and_forced(answers: pd.DataFrame) -> pd.DataFrame:
    """ARM's Figure 3 for one policy, a row per format and column: estimate, interval, n.

    "chosen" is accuracy where the policy chose the format; "forced, where chosen" that of the forced answers
    to the same questions; "difference" the one less the other, in pairs; "forced, all" on every question.
    """
    adaptive, lines = answers[answers["mode"] == "adaptive"], []
    for format in FORMATS:
        forced = answers[answers["mode"] == format].set_index(["seed", "question"])["correct"].astype(float)
        rows = adaptive[adaptive["used"] == format]
        same = forced.reindex(pd.MultiIndex.from_frame(rows[["seed", "question"]])).to_numpy()
        rows = rows.assign(chosen=rows["correct"].astype(float), forced=same)
        rows = rows.assign(difference=rows["chosen"] - rows["forced"])
        every = answers[answers["mode"] == format].assign(forced=lambda table: table["correct"].astype(float))
        for name, table, column in (
            ("chosen", rows, "chosen"),
            ("forced, where chosen", rows, "forced"),
            ("difference", rows, "difference"),
            ("forced, all", every, "forced"),
        ):
            found = bootstrap_mean(table, column, draws=DRAWS) if len(table) else (float("nan"),) * 3
            lines.append((format, name, *found, len(table)))
    return pd.DataFrame(lines, columns=["format", "what", "accuracy", "low", "high", "n"])


def choices_shown(table: pd.DataFrame) -> pd.DataFrame:
    """What `chosen_and_forced` found, formats by column, to be read."""
    said = [
        f"{row.accuracy:.3f} [{row.low:.3f}, {row.high:.3f}]" if row.n else "-" for row in table.itertuples()
    ]
    kinds = ["chosen", "forced, where chosen", "difference", "forced, all"]
    shown = table.assign(said=said).pivot(index="format", columns="what", values="said").loc[FORMATS, kinds]
    chosen = table[table["what"] == "chosen"].set_index("format")["n"]
    return shown.assign(**{"n chosen": chosen})


# ---- a budget ------------------------------------------------------------------------------------


def under_budget(answers: pd.DataFrame) -> pd.DataFrame:
    """Accuracy at each budget with its interval; of the answers that were cut: their share, how many could
    not be read, and how many of the others were right."""
    whole = answers[(answers["mode"] == "adaptive") & (answers["sample"] == 0)]
    length = whole.set_index(["policy", "seed", "question"])["tokens"]
    rows = answers[answers["mode"].str.startswith("budget_")]
    keys = pd.MultiIndex.from_frame(rows[["policy", "seed", "question"]])
    budget = rows["mode"].str.removeprefix("budget_").astype(int)
    rows = rows.assign(budget=budget, cut=length.reindex(keys).to_numpy() > budget)
    lines = []
    for (policy, limit), group in rows.groupby(["policy", "budget"], sort=False):
        cut, names = group[group["cut"]], ("accuracy", "accuracy_low", "accuracy_high")
        read = cut[cut["used"] != "invalid"]
        line = {"policy": policy, "budget": limit} | dict(
            zip(names, bootstrap_mean(group, "correct", draws=DRAWS), strict=True)
        )
        line |= {"tokens": group["tokens"].mean(), "cut": group["cut"].mean()}
        lines.append(
            line | {"unreadable": 1 - len(read) / max(len(cut), 1), "right if read": read["correct"].mean()}
        )
    return pd.DataFrame(lines)


# ---- a router by depth ---------------------------------------------------------------------------


def route(rates: Rates, tokens: Rates, loss: float) -> dict[int, str]:
    """For each depth the cheapest format that is right at most `loss` less often than the best one there."""
    return {
        depth: min(
            (format for format, rate in of.items() if rate >= max(of.values()) - loss),
            key=tokens[depth].__getitem__,
        )
        for depth, of in rates.items()
    }


def router_table(
    answers: pd.DataFrame, route: Callable[[Rates, Rates, float], Mapping[int, str]]
) -> pd.DataFrame:
    """One policy's forced formats, sent by `route` and by its bounds; accuracy, tokens, and their intervals.

    The router learns from every second question and is measured on the others. "oracle" knows what each
    format can at each depth, "hindsight" the cheapest right answer to each question. "random" takes the
    formats as often as the policy does, blind to the question.
    """
    forced = answers[answers["mode"].isin(FORMATS)]
    known, asked = forced[forced["question"] % 2 == 0], forced[forced["question"] % 2 == 1]
    means = known.groupby(["depth", "mode"])[["correct", "tokens"]].mean()
    rates, tokens = (
        {d: of.loc[d].to_dict() for d in of.index.levels[0]} for of in (means["correct"], means["tokens"])
    )
    adaptive = answers[(answers["mode"] == "adaptive") & (answers["question"] % 2 == 1)]
    plans = {
        "router": route(rates, tokens, 0.02),
        "oracle": {depth: oracle_format(depth) for depth in rates},
        "always long CoT": dict.fromkeys(rates, LONG),
    }
    ways = {name: asked[asked["mode"] == asked["depth"].map(plan)] for name, plan in plans.items()}
    shares = adaptive["used"].value_counts(normalize=True)
    ways |= {"hindsight": _cheapest_right(asked), "adaptive": adaptive, "random": _mixed(asked, shares)}
    return pd.DataFrame(
        {
            name: {"accuracy": rows["correct"].mean(), "tokens": rows["tokens"].mean()}
            for name, rows in ways.items()
        }
    ).T


def _cheapest_right(forced: pd.DataFrame) -> pd.DataFrame:
    """Of each question the cheapest right answer; the cheapest where none is right."""
    ordered = forced.sort_values(["correct", "tokens"], ascending=[False, True])
    return ordered.drop_duplicates(["seed", "question"])


def _mixed(forced: pd.DataFrame, shares: pd.Series) -> pd.DataFrame:
    """What a draw of the formats by `shares` gives on average."""
    weights = forced["mode"].map(shares).fillna(0.0)
    keys = [forced["seed"], forced["question"]]
    return forced[["correct", "tokens"]].mul(weights, axis=0).groupby(keys).sum()
