"""The tables of the configuration bandit: what was answered, and the shipped runs over seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pandas as pd

from lib.dial.tasks import dial_task
from lib.dial.world import Question
from lib.runs import read_json
from lib.studies.bandits import RUNS
from lib.studies.paired import bootstrap_mean, seed_interval
from lib.studies.simulated_surface import SURFACE_RUNS
from lib.tasks import Rollout


def rollouts(
    method: str,
    questions: Sequence[Question],
    answers: Sequence[str | None],
    tokens: Sequence[int],
    *,
    replies: Sequence[str | None] | None = None,
    seed: int = 0,
) -> list[Rollout]:
    """What a method answered to each question, to keep; `replies` are given where each answer is of one."""
    times: Counter[str] = Counter()
    found = []
    for question, answer, cost, reply in zip(
        questions, answers, tokens, replies or [""] * len(answers), strict=True
    ):
        task = dial_task(question).id
        kept = Rollout(
            task_id=task,
            sample=times[task],
            seed=seed,
            method=method,
            mode="prompt",
            format=None,
            text=reply or "",
            answer=answer,
            correct=answer == question.answer,
            tokens=cost,
            truncated=not reply,
        )
        found.append(kept)
        times[task] += 1
    return found


def over_questions(kept: Sequence[Rollout]) -> pd.DataFrame:
    """Share right with its 95 % bootstrap interval over questions, and mean tokens: a row per method."""
    answers = pd.DataFrame(map(vars, kept)).rename(columns={"task_id": "id"})
    rows = {
        method: (*bootstrap_mean(mine, "correct"), mine["tokens"].mean())
        for method, mine in answers.groupby("method", sort=False)
    }
    return pd.DataFrame(rows, index=["mean", "low", "high", "tokens"]).T


def read_summaries() -> pd.DataFrame:
    """The shipped runs: method, seed, reward, tokens and the optimal reward, a row per run."""
    rows = []
    for path in sorted(RUNS.glob("*/seed_*/summary.json")):
        summary = read_json(path)
        ((name, row),) = summary["policies"].items()
        seed = int(path.parent.name.removeprefix("seed_"))
        rows.append((name, seed, row["reward"], row["mean_tokens"], summary["optimal_reward"]))
    return pd.DataFrame(rows, columns=["method", "seed", "reward", "tokens", "optimal"])


def over_seeds(runs: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """The mean reward over seeds with its 95 % interval, and the number of seeds: a row per method."""
    rows = {}
    for name in methods:
        values = runs.loc[runs["method"] == name, "reward"].tolist()
        rows[name] = (*seed_interval(values), len(values))
    return pd.DataFrame(rows, index=["mean", "low", "high", "seeds"]).T


def surface_over_seeds(space: str) -> pd.DataFrame:
    """The shipped shares of a space, "dial" or "paper": mean, 95 % interval and least, a row per rule."""
    summaries = [read_json(path) for path in sorted(SURFACE_RUNS.glob(f"{space}/seed_*/summary.json"))]
    rows = {}
    for rule in summaries[0]:
        shares = pd.Series([summary[rule]["share"] for summary in summaries])
        rows[rule] = (*seed_interval(shares), shares.min(), len(shares))
    return pd.DataFrame(rows, index=["mean", "low", "high", "least", "seeds"]).T
