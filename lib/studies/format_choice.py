"""Notebook 03's tables: who chose what and was right, and where the lost points went.

They read the answers of shipped runs (`lib.studies.depths`); each says how many seeds it rests on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from lib.dial import MAX_DEPTH, TIERS, reach
from lib.formats import ReasoningFormat
from lib.measure.evaluation import format_shares, summarise
from lib.policies.load import CHECKPOINTS
from lib.runs import read_json
from lib.studies.depths import PLACE, fates, read_answers
from lib.studies.paired import Interval, bootstrap_mean, bootstrap_paired, saving
from lib.studies.records import RUNS
from lib.studies.shared.figures import METHODS, NAMES

DRAWS = 1000  # of a bootstrap: enough for the digits of a table


def text(found: Interval, digits: int = 3, times: float = 1) -> str:
    """An interval as it stands in a table: 0.982 [0.971, 0.990]."""
    mean, low, high = (times * value for value in found)
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def seeds(answers: pd.DataFrame) -> int:
    """How many runs the answers are of."""
    return answers["seed"].nunique()


def made(methods: Sequence[str], records: str = "answers") -> list[str]:
    """Those of the methods whose runs are in the tree."""
    return [method for method in methods if list((PLACE / method).glob(f"seed_*/{records}.parquet"))]


def balanced(*methods: str) -> pd.DataFrame:
    """The answers of shipped runs to the 1,200 test questions."""
    answers = read_answers(*methods)
    return answers[answers["set"] == "balanced"].assign(long=answers["used"] == ReasoningFormat.LONG_COT)


# ---- tables ------------------------------------------------------------------------------------


def by_tier(answers: pd.DataFrame) -> pd.DataFrame:
    """Accuracy, tokens and the share of long CoT of each method on each tier, with intervals."""
    rows = {}
    for (method, tier), part in answers.groupby(["method", "tier"], sort=False):
        rows[METHODS.get(method, method), tier] = {
            "accuracy": text(bootstrap_mean(part, "correct", draws=DRAWS)),
            "tokens": text(bootstrap_mean(part, "tokens", draws=DRAWS), 1),
            "share of long CoT": text(bootstrap_mean(part, "long", draws=DRAWS)),
            "seeds": seeds(part),
        }
    return pd.DataFrame(rows).T


def compared(ours: pd.DataFrame, theirs: pd.DataFrame) -> dict[str, tuple[Interval, Interval]]:
    """In all and on each tier: the share of tokens saved, and the difference in accuracy, paired."""
    parts = {"all": (ours, theirs)} | {
        tier: (ours[ours["tier"] == tier], theirs[theirs["tier"] == tier]) for tier in TIERS
    }
    return {
        name: (
            bootstrap_paired(*pair, "tokens", compare=saving, draws=DRAWS),
            bootstrap_paired(*pair, "correct", draws=DRAWS),
        )
        for name, pair in parts.items()
    }


def shares(answers: pd.DataFrame, by: str = "tier") -> pd.DataFrame:
    """The share of each format, and of invalid responses, at each tier or depth."""
    names = [*ReasoningFormat, "invalid"]
    found = answers.groupby(by, sort=False)["used"].value_counts(normalize=True)
    return found.unstack(fill_value=0.0).reindex(columns=names, fill_value=0.0)


# ---- the lost points ---------------------------------------------------------------------------


def lost_points(answers: pd.DataFrame) -> pd.DataFrame:
    """Wrong answers of each method on each tier by what they are made of, in percent of its answers."""
    table = answers.assign(fate=fates(answers))
    found = table.groupby(["method", "tier"], sort=False)["fate"].value_counts(normalize=True)
    kinds = ["out of reach", "slip", "invalid"]
    points = 100 * found.unstack(fill_value=0.0).reindex(columns=kinds, fill_value=0.0)
    return points.rename(index=METHODS, level="method").rename_axis(columns="wrong, in % of its answers")


def skills(forced: pd.DataFrame) -> pd.DataFrame:
    """Accuracy where a format is forced, at each depth up to its reach: formats and methods x depths.

    The last column has that of the deepest one with its interval.
    """
    inside = forced[forced["depth"] <= forced["mode"].map(reach)]
    means = inside.groupby(["mode", "method", "depth"])["correct"].mean().unstack()
    found = means.map("{:.2f}".format, na_action="ignore").fillna("")
    edge = inside[inside["depth"] == inside["mode"].map(reach)].groupby(["mode", "method"])
    found["at its edge"] = {
        names: text(bootstrap_mean(rows, "correct", draws=DRAWS), 2) for names, rows in edge
    }
    order = [(format, method) for format in ReasoningFormat for method in forced["method"].unique()]
    return found.loc[order].rename(index=NAMES | METHODS).rename_axis(index=["format", "skill of"])


def crossed(answers: pd.DataFrame, forced: pd.DataFrame) -> pd.DataFrame:
    """The accuracy that one method's choices would have with another's skill: choices x skills.

    Choices are shares of formats at each depth, skill is accuracy where they are forced. Invalid is wrong.
    """
    depths = answers[answers["method"] == answers["method"].iloc[0]]["depth"].value_counts(normalize=True)
    known = forced.groupby(["method", "depth", "mode"])["correct"].mean()
    table = {}
    for chooser, part in answers.groupby("method", sort=False):
        chosen = shares(part, "depth").drop(columns="invalid")
        table[METHODS[chooser]] = {
            METHODS[skilled]: sum(
                share * (chosen.loc[depth] * known[skilled, depth].reindex(chosen.columns)).sum()
                for depth, share in depths.items()
            )
            for skilled in forced["method"].unique()
        }
    found = pd.DataFrame(table).T
    return found.rename_axis(index="choices of", columns="skill of")


# ---- depth and tuning --------------------------------------------------------------------


def depth_lines(answers: pd.DataFrame) -> pd.DataFrame:
    """Accuracy and tokens of each method at each depth, with intervals: a row each."""
    rows = []
    for (method, depth), part in answers[answers["set"] != "additions"].groupby(["method", "depth"]):
        line = {"method": method, "depth": depth, "seeds": seeds(part)}
        for name, column in (("accuracy", "correct"), ("tokens", "tokens")):
            line[name], line[f"{name}_low"], line[f"{name}_high"] = bootstrap_mean(
                part, column, draws=DRAWS // 4
            )
        rows.append(line)
    return pd.DataFrame(rows)


def beyond(answers: pd.DataFrame) -> pd.DataFrame:
    """Accuracy, tokens and long CoT on deeper questions, which no training had, and on additions only."""
    rows = {}
    parts = {
        f"depth {MAX_DEPTH + 1} to {MAX_DEPTH + 4}": answers["set"] == "deeper",
        "additions only, easy": (answers["set"] == "additions") & (answers["tier"] == "easy"),
        "additions only, medium": (answers["set"] == "additions") & (answers["tier"] == "medium"),
        "additions only, hard": (answers["set"] == "additions") & (answers["tier"] == "hard"),
    }
    for name, chosen in parts.items():
        for method, part in answers[chosen].groupby("method", sort=False):
            part = part.assign(long=part["used"] == ReasoningFormat.LONG_COT)
            rows[name, METHODS[method]] = {
                "accuracy": text(bootstrap_mean(part, "correct", draws=DRAWS), 2),
                "tokens": text(bootstrap_mean(part, "tokens", draws=DRAWS), 1),
                "share of long CoT": text(bootstrap_mean(part, "long", draws=DRAWS), 2),
            }
    return pd.DataFrame(rows).T


def trials() -> pd.DataFrame:
    """The recipe's trials on validation questions: each seed's accuracy, rates x methods."""
    rows: dict[str, dict[str, str]] = {}
    for folder in sorted((RUNS / "03_ada_grpo" / "tuning").glob("*")):
        method = "ada_grpo" if folder.name.startswith("ada_grpo") else "grpo"
        rate, _, cooldown = folder.name.removeprefix(f"{method}_").partition("_")
        end = f"falls in the last {float(cooldown):.0%}" if float(cooldown) else "constant"
        trial = f"{float(rate):g}, {end}"
        found = [read_json(path)["accuracy"] for path in sorted(folder.glob("seed_*/summary.json"))]
        rows.setdefault(trial, {})[METHODS[method]] = "  ".join(f"{value:.3f}" for value in found)
    return pd.DataFrame(rows).T.fillna("-").rename_axis("learning rate")


def sizes() -> pd.DataFrame:
    """The story at all sizes of the model: a row for each policy that is made, on the same questions."""
    rows = {}
    for parameters, place in sorted(_backbones().items()):
        for method in made([f"{place}{policy}" for policy in ("sft", "grpo", "ada_grpo")]):
            answers = balanced(method)
            easy = answers[answers["tier"] == "easy"]
            rows[f"{parameters:,}", METHODS[method.rpartition("/")[2]]] = {
                "accuracy": text(bootstrap_mean(answers, "correct", draws=DRAWS // 2)),
                "tokens": text(bootstrap_mean(answers, "tokens", draws=DRAWS // 2), 1),
                "long CoT on easy": text(bootstrap_mean(easy, "long", draws=DRAWS // 2), 2),
                "seeds": seeds(answers),
            }
    return pd.DataFrame(rows).T.rename_axis(["parameters", "policy"])


def _backbones() -> dict[int, str]:
    """The number of parameters of each backbone, and where the runs that start from it lie."""
    records = {
        f"{file.parents[2].name}/": file for file in PLACE.glob("backbone_*/pretrain/seed_0/summary.json")
    }
    records[""] = CHECKPOINTS / "dial-base" / "provenance.json"
    return {read_json(file)["parameters"]: place for place, file in records.items()}


# ---- a live run ------------------------------------------------------------------------------------


def telling_group(probe: pd.DataFrame) -> int:
    """The group with right and wrong answers in the most formats, all of them valid; else the first."""
    groups = probe.groupby("group")
    mixed = groups["correct"].mean().between(0, 1, inclusive="neither")
    valid = groups["used"].agg(lambda used: (used != "invalid").all())
    right = probe[probe["correct"]].groupby("group")["used"].nunique().reindex(mixed.index, fill_value=0)
    score = (mixed & valid) * (10 * right + groups["used"].nunique())
    return int(score.idxmax())


def live_table(measured: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Accuracy and tokens of each policy on each tier, with Wilson's and normal intervals, and the shares."""
    rows = {}
    for name, table in measured.items():
        used = format_shares(table)
        for _, line in summarise(table, ["tier"]).iterrows():
            rows[METHODS[name], line["tier"]] = {
                "accuracy": text((line["accuracy"], line["accuracy_low"], line["accuracy_high"])),
                "tokens": text((line["tokens"], line["tokens_low"], line["tokens_high"]), 1),
                **{NAMES.get(f, f): f"{share:.3f}" for f, share in used.loc[line["tier"]].items()},
                "n": int(line["count"]),
            }
    return pd.DataFrame(rows).T


def savings_table(live: Mapping[str, float], seeds: Mapping[str, tuple[Interval, Interval]]) -> pd.DataFrame:
    """Tokens saved and the difference in accuracy, of the live run, and with intervals over all seeds."""
    rows = {
        ("tokens saved", name): {
            "this run": f"{value:.1%}",
            "all seeds": text(seeds[name][0], 1, 100) + " %" if name in seeds else "-",
        }
        for name, value in live.items()
        if name != "accuracy difference"
    }
    rows["accuracy, points", "all"] = {
        "this run": f"{100 * live['accuracy difference']:+.2f}",
        "all seeds": text(seeds["all"][1], 2, 100) if seeds else "-",
    }
    return pd.DataFrame(rows).T
