"""Notebook 03: why GRPO on easy questions alone drifts to direct: which responses of the start go wrong."""

from __future__ import annotations

import pandas as pd

from lib.dial.tasks import dial_tasks
from lib.dial.world import TIERS
from lib.formats import ReasoningFormat
from lib.measure.intervals import wilson_interval
from lib.measure.modes import answer
from lib.policies.load import load_policy
from lib.runs import Run, read_json
from lib.studies.changes import CHANGES
from lib.studies.depths import read_answers
from lib.studies.records import RUNS, SFT_SHARE, Outcome
from lib.studies.shared.figures import NAMES
from lib.tasks import rollout_table

QUESTIONS, SAMPLES = 1200, 8


def slips(seed: int, run: Run) -> Outcome:
    """How often dial-sft is wrong on easy training questions at temperature 1, by the tag it opened with."""
    tasks = dial_tasks(QUESTIONS, split="train", seed=seed, sft_share=SFT_SHARE, depths=TIERS["easy"])
    asked = [task for task in tasks for _ in range(SAMPLES)]
    model, tokenizer = load_policy("dial-sft")
    rollouts = answer((model, tokenizer), asked, temperature=1.0, seed=seed)
    run.keep_rollouts("free", rollouts)
    table = rollout_table(rollouts, asked).assign(opened=[opened(rollout.text) for rollout in rollouts])
    counts = table.groupby("opened")["correct"].agg(responses="size", right="sum")
    numbers = {name: {key: int(value) for key, value in row.items()} for name, row in counts.iterrows()}
    return Outcome({"opened": numbers}, {"config": {"base": "dial-sft"}}, model, tokenizer)


def opened(text: str) -> str:
    """The format whose tag a response opens with, also where the rest cannot be read; else "none"."""
    return next((format.value for format in ReasoningFormat if text.startswith(format.prefix)), "none")


def slip_table() -> pd.DataFrame:
    """Wrong responses of the shipped run by their opening tag, in percent, with Wilson's interval."""
    counts = read_json(RUNS / "03_ada_grpo" / "slips" / "seed_0" / "summary.json")["opened"]
    rows = {}
    for name in (*(format.value for format in ReasoningFormat), "none"):
        responses, right = counts[name]["responses"], counts[name]["right"]
        low, high = wilson_interval(responses - right, responses)
        wrong = f"{100 * (1 - right / responses):.2f} [{100 * low:.2f}, {100 * high:.2f}]"
        rows[NAMES.get(name, name)] = {"responses": responses, "wrong": responses - right, "wrong, %": wrong}
    return pd.DataFrame(rows).T.rename_axis("opens with")


def easy_shares(*methods: str) -> pd.DataFrame:
    """The share of each format on easy test questions: a row for each run of the methods."""
    answers = read_answers(*methods)
    easy = answers[(answers["set"] == "balanced") & (answers["tier"] == "easy")]
    found = easy.groupby(["method", "seed"], sort=False)["used"].value_counts(normalize=True).unstack()
    names = [*(format.value for format in ReasoningFormat), "invalid"]
    titles = {method: CHANGES[method].done for method in methods}
    return found.reindex(columns=names).fillna(0.0).rename(index=titles, columns=NAMES).round(2)
