"""Notebook 05's tables: AdaptThink over seeds, who skips and is right, and what RL takes from the short mode.

They read the answers of shipped runs (`lib.studies.thinking_answers`); each says how many seeds it rests on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import pandas as pd

from lib.dial import MAX_DEPTH, TIERS
from lib.studies.format_choice import DRAWS, seeds, text
from lib.studies.paired import Interval, bootstrap_mean, bootstrap_paired, saving
from lib.studies.thinking_answers import OTHER, PLACE, balanced, made, read_answers, read_forced
from lib.studies.thinking_bounds import both_modes, routed
from lib.thinking import NOTHINKING, THINKING

FEW = 100  # answers: fewer are counted, and have no interval
DID = {NOTHINKING: "skipped", THINKING: "thought", OTHER: "began otherwise"}
QUANTITIES = {"accuracy": "correct", "tokens": "tokens", "skips": "skips"}


def over_seeds(methods: Sequence[str]) -> pd.DataFrame:
    """Accuracy, tokens and the shares that skip or begin otherwise of each shipped method, with intervals."""
    rows = {}
    for method in made(methods):
        answers = balanced(method)
        shares = {
            f"skips {tier}": text(bootstrap_mean(answers[answers["tier"] == tier], "skips", draws=DRAWS), 2)
            for tier in TIERS
        }
        rows[method] = {
            "seeds": seeds(answers),
            "accuracy": text(bootstrap_mean(answers, "correct", draws=DRAWS)),
            "tokens": text(bootstrap_mean(answers, "tokens", draws=DRAWS), 1),
            **shares,
            "other first words": text(bootstrap_mean(answers, "other", draws=DRAWS)),
        }
    return pd.DataFrame(rows).T


def claimed(ours: str = "adaptthink", theirs: str = "thinking") -> dict[str, Interval]:
    """What AdaptThink must show against always thinking: share of tokens saved, accuracy, where it skips."""
    trained, always = balanced(ours), balanced(theirs)
    easy, deep = trained["tier"] == "easy", trained["depth"].between(9, MAX_DEPTH)
    return {
        "tokens saved": bootstrap_paired(trained, always, "tokens", compare=saving, draws=DRAWS),
        "accuracy difference": bootstrap_paired(trained, always, "correct", draws=DRAWS),
        "skips easy": bootstrap_mean(trained[easy], "skips", draws=DRAWS),
        "skips depth 9 to 12": bootstrap_mean(trained[deep], "skips", draws=DRAWS),
    }


def difference(ours: str, theirs: str) -> Interval:
    """The accuracy of one method less that of another, paired by question."""
    return bootstrap_paired(balanced(ours), balanced(theirs), "correct", draws=DRAWS)


def claims(ours: str = "adaptthink", theirs: str = "thinking") -> pd.DataFrame:
    """The same as a table: what was asked for, what was found, and whether it holds: of the estimate, and at
    both ends of its interval.
    """
    found = claimed(ours, theirs)
    asked: dict[str, tuple[str, Callable[[float], bool]]] = {
        "tokens saved": ("at least 35 %", lambda share: share >= 0.35),
        "accuracy difference": ("at least -1 point", lambda share: share >= -0.01),
        "skips easy": ("at least 90 %", lambda share: share >= 0.9),
        "skips depth 9 to 12": ("at most 2 %", lambda share: share <= 0.02),
    }
    rows = {}
    for name, (wanted, fits) in asked.items():
        mean, *ends = found[name]
        rows[name] = {"asked": wanted, "found, in %": text(found[name], 1, 100), "holds": fits(mean)}
        rows[name]["its interval too"] = all(map(fits, ends))
    return pd.DataFrame(rows).T


def depth_lines(answers: pd.DataFrame) -> pd.DataFrame:
    """Accuracy, tokens and share skipped of each method at each depth, with intervals: a row each."""
    answers = answers.assign(skips=answers["used"] == NOTHINKING)
    rows = []
    for (method, depth), part in answers[answers["set"] != "additions"].groupby(["method", "depth"]):
        line = {"method": method, "depth": depth, "seeds": seeds(part)}
        for name, column in QUANTITIES.items():
            found = bootstrap_mean(part, column, draws=DRAWS // 4)
            line |= dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))
        rows.append(line)
    return pd.DataFrame(rows)


def runs_apart(answers: pd.DataFrame, method: str) -> pd.DataFrame:
    """`depth_lines` in which each run of a method is a line of its own, "method 0", without an interval."""
    mine = answers["method"] == method
    names = answers["method"].mask(mine, method + " " + answers["seed"].astype(str))
    lines = depth_lines(answers.assign(method=names))
    ends = [name for name in lines if name.endswith(("_low", "_high"))]
    lines.loc[lines["method"].isin(names[mine]), ends] = float("nan")
    return lines


def chosen_modes(answers: pd.DataFrame, by: str = "tier") -> pd.DataFrame:
    """Of each method, tier (or depth) and mode it chose: the share, and how often it is right there."""
    rows = []
    for (method, level, mode), part in answers.groupby(["method", by, "used"], sort=False):
        whole = (answers["method"] == method) & (answers[by] == level)
        known = {"method": method, by: level, "mode": mode, "share": len(part) / whole.sum()}
        many = len(part) >= FEW
        right = (
            text(bootstrap_mean(part, "correct", draws=DRAWS)) if many else f"{part['correct'].sum()} right"
        )
        rows.append(known | {"accuracy": right, "n": len(part)})
    return pd.DataFrame(rows)


def lost_points(method: str, *, within: int = 6) -> pd.DataFrame:
    """Points that a policy loses against the router that skips up to a depth, by what it did.

    Each answer is held against the router's mean on the same question; six kinds add up to the difference.
    Points have an interval, `low` and `high`.
    """
    answers, table = balanced(method), both_modes()
    router = routed(table, table["depth"] <= within).groupby("question")["correct"].mean()
    answers["lost"] = 100 * (answers["question"].map(router) - answers["correct"])
    reach = {f"depth 1 to {within}": answers["depth"] <= within, "deeper": answers["depth"] > within}
    kinds = {
        (did, where): there & (answers["used"] == used)
        for used, did in DID.items()
        for where, there in reach.items()
    }
    kinds |= {(did, "all depths"): answers["used"] == used for used, did in DID.items()}
    rows = {}
    for kind, of in {**kinds, ("everything", ""): answers["lost"].notna()}.items():
        points, low, high = bootstrap_mean(answers.assign(part=answers["lost"] * of), "part", draws=DRAWS)
        rows[kind] = {"share of answers": of.mean(), "points lost": points, "low": low, "high": high}
    return pd.DataFrame(rows).T.rename_axis(["what it did", "where"])


def short_mode(*methods: str) -> pd.DataFrame:
    """Accuracy of answers without a thought, forced, by depth: method, depth, seeds, accuracy, low, high.

    "nothinking" is dial-thinker before training.
    """
    rows = []
    for method in methods:
        answers = balanced(method) if method == "nothinking" else read_forced(method)
        for depth, part in answers.groupby("depth"):
            found = bootstrap_mean(part, "correct", draws=DRAWS // 4)
            rows.append((method, depth, seeds(part), *found))
    return pd.DataFrame(rows, columns=["method", "depth", "seeds", "accuracy", "low", "high"])


def worn(method: str, *, within: int = 6) -> Interval:
    """Points of accuracy that training takes from forced skipping up to a depth: paired by question."""
    after, before = read_forced(method), balanced("nothinking")
    return bootstrap_paired(
        after[after["depth"] <= within], before[before["depth"] <= within], "correct", draws=DRAWS
    )


def beyond(*methods: str) -> pd.DataFrame:
    """Accuracy, tokens and share skipped on additions only, and deeper than any question in training."""
    rows = {}
    for method in made(methods):
        answers = read_answers(method)
        answers = answers.assign(skips=answers["used"] == NOTHINKING)
        added = answers[answers["set"] == "additions"]
        parts = {f"additions only, {tier}": added[added["tier"] == tier] for tier in TIERS}
        parts[f"depth {MAX_DEPTH + 1} to {MAX_DEPTH + 4}"] = answers[answers["set"] == "deeper"]
        for name, part in parts.items():
            rows[name, method] = {
                label: text(bootstrap_mean(part, column, draws=DRAWS), 1 if column == "tokens" else 2)
                for label, column in QUANTITIES.items()
            }
    order = sorted(rows, key=lambda row: [name for name, _ in rows].index(row[0]))
    return pd.DataFrame(rows).T.loc[order]


def implicit(*methods: str) -> pd.DataFrame:
    """Of the answers that skip: how many there are, the share that thinks on after all, and their tokens."""
    rows = {}
    for method in made(methods):
        answers = balanced(method)
        skipped = answers[answers["skips"]]
        if len(skipped):
            rows[method] = {
                "skipped": len(skipped),
                "thinks on": text(bootstrap_mean(skipped, "implicit", draws=DRAWS), 4),
                "tokens": text(bootstrap_mean(skipped, "tokens", draws=DRAWS), 1),
            }
    return pd.DataFrame(rows).T


def watched(method: str) -> pd.DataFrame:
    """What the shipped runs of a method measured while training: a row per evaluation, with `seed`."""
    rows = [
        {"seed": int(path.parent.name.removeprefix("seed_"))} | row
        for path in sorted((PLACE / method).glob("seed_*/metrics.jsonl"))
        for row in map(json.loads, path.read_text().splitlines())
    ]
    table = pd.DataFrame(rows)
    kept = [name for name in table if name.startswith("eval_")]
    return table.dropna(subset=["eval_nothinking_ratio"])[["seed", "step", *kept]].rename(
        columns=lambda name: name.removeprefix("eval_")
    )
