"""Rollouts into numbers: accuracy and tokens with intervals, and shares of formats."""

from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Any

import pandas as pd

from lib import thinking
from lib.engines.ask import Policy, ask
from lib.formats import ReasoningFormat
from lib.measure.intervals import mean_interval, wilson_interval
from lib.tasks import Rollout, Task

FORMATS = [format.value for format in ReasoningFormat]
SUMMARISED = ["accuracy", "accuracy_low", "accuracy_high", "tokens", "tokens_low", "tokens_high", "count"]


def ask_in_every_format(policy: Policy, tasks: Sequence[Task], *, max_new_tokens: int = 160) -> list[Rollout]:
    """The rollouts of `ask`, greedy and once in each format; the mode is the format."""
    asked = partial(ask, policy, tasks, max_new_tokens=max_new_tokens)
    formats = (asked(prefix=format.prefix, mode=format.value) for format in ReasoningFormat)
    return list(chain.from_iterable(formats))


def summarise(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Accuracy (Wilson) and mean tokens (normal) with 95 % intervals, for each group of rows."""

    def line(group: pd.DataFrame) -> pd.Series:
        right, tokens = group["correct"], group["tokens"]
        accuracy = right.mean(), *wilson_interval(int(right.sum()), len(group))
        return pd.Series([*accuracy, tokens.mean(), *mean_interval(tokens), len(group)], SUMMARISED)

    return table.groupby(list(by), sort=False)[["correct", "tokens"]].apply(line).reset_index()


def summary(table: pd.DataFrame) -> dict[str, Any]:
    """The numbers of a metrics file: accuracy and mean tokens, in all and per tier, and what was chosen.

    That is the share of each format per tier, or, where the rollouts think or skip, the share that skips.
    The latter come per depth too, where it is known.
    """
    if not table["format"].isin(thinking.MODES).all():
        shares = format_shares(table)
        tiers = {
            tier: _means(part) | {"format_share": shares.loc[tier].to_dict()}
            for tier, part in table.groupby("tier", sort=False)
        }
        return _means(table) | {"tiers": tiers, "questions": len(table)}
    table = table.assign(nothinking_ratio=table["format"] == thinking.NOTHINKING)
    found = _means(table) | {"tiers": {t: _means(part) for t, part in table.groupby("tier", sort=False)}}
    if table["depth"].notna().all():
        found["depths"] = {str(depth): _means(part) for depth, part in table.groupby("depth")}
    return found


def _means(table: pd.DataFrame) -> dict[str, float]:
    columns = {"accuracy": "correct", "mean_tokens": "tokens", "nothinking_ratio": "nothinking_ratio"}
    return {name: float(table[column].mean()) for name, column in columns.items() if column in table}


def format_shares(table: pd.DataFrame) -> pd.DataFrame:
    """The share of each format among the responses of a tier: tiers x (formats, invalid), rows sum to 1.

    A response without a valid answer counts as invalid, whatever tag it opens with.
    """
    counts = table.groupby("tier", sort=False)["used"].value_counts(normalize=True)
    return counts.unstack(fill_value=0.0).reindex(
        index=table["tier"].unique(), columns=[*FORMATS, "invalid"], fill_value=0.0
    )
