"""The runs behind the published numbers: they are there, whole, and show what the notebooks say they show."""

import pandas as pd
import pytest

from lib.dial import TIERS
from lib.formats import ReasoningFormat
from lib.measure.intervals import seed_interval
from lib.runs import read_json
from lib.studies.trainings import MOST_ROWS, RUNS, read_runs, thinned

D, S, C, L = ReasoningFormat
SEEDS = 5


@pytest.fixture(scope="module")
def summaries():
    return {method: read_runs("03", method)[1] for method in ("grpo", "ada_grpo")}


def share(summary, tier, *formats):
    return sum(summary["tiers"][tier]["format_share"][format] for format in formats)


def mean(runs, number):
    return seed_interval([number(run) for run in runs])[0]


def test_every_run_says_where_it_comes_from():
    folders = sorted((RUNS / "03_ada_grpo").glob("*/seed_*"))
    assert len(folders) >= 2 * SEEDS
    for folder in folders:
        record = read_json(folder / "provenance.json")
        assert record["commit"] and record["uncommitted_changes"] is False
        assert record["config"]["base"] == "dial-sft" and record["seed"] == int(folder.name[5:])
        assert record["steps"] == record["config"]["batches"] and record["resumed"] is False


def test_grpo_collapses_to_long_cot(summaries):
    assert len(summaries["grpo"]) == SEEDS
    for tier in TIERS:
        assert mean(summaries["grpo"], lambda run, tier=tier: share(run, tier, L)) >= 0.95


def test_ada_grpo_keeps_what_is_right(summaries):
    ours = summaries["ada_grpo"]
    assert len(ours) == SEEDS
    for format in ReasoningFormat:
        assert 0.10 <= mean(ours, lambda run, format=format: share(run, "easy", format)) <= 0.45
    assert mean(ours, lambda run: share(run, "medium", D)) <= 0.10
    assert mean(ours, lambda run: share(run, "hard", L)) >= 0.60
    assert mean(ours, lambda run: share(run, "hard", D, S)) <= 0.05


def test_ada_grpo_saves_tokens_and_keeps_accuracy(summaries):
    ours, theirs = summaries["ada_grpo"], summaries["grpo"]
    gap = mean(theirs, lambda run: run["accuracy"]) - mean(ours, lambda run: run["accuracy"])
    assert gap <= 0.03
    easy = [mean(runs, lambda run: run["tiers"]["easy"]["mean_tokens"]) for runs in (ours, theirs)]
    assert easy[0] <= 0.6 * easy[1]
    tokens = [mean(runs, lambda run: run["mean_tokens"]) for runs in (ours, theirs)]
    assert tokens[0] <= 0.75 * tokens[1]


def test_logs_are_thinned_to_means():
    rows = [{"step": i, "accuracy": i / 100, "clip_ratio/low_mean": 1.0} for i in range(1, 101)]
    rows.append({"step": 100, "train_runtime": 5.0})
    found = thinned(rows)
    assert len(found) <= MOST_ROWS and found[0] == {"step": 3, "accuracy": 0.02}
    assert found[-1]["train_runtime"] == 5.0
    assert pd.DataFrame(found)["accuracy"].mean() == pytest.approx(0.505, abs=0.01)


def test_evaluations_keep_their_steps():
    rows = [{"step": i, "loss": 1.0, "reward": float(i)} for i in range(1, 101)]
    rows += [{"step": i, "eval_accuracy": i / 100, "eval_runtime": 9.0} for i in (0, 50, 100)]
    found = thinned(rows)
    assert [row for row in found if "eval_accuracy" in row] == [
        {"step": 0.0, "eval_accuracy": 0.0},
        {"step": 50.0, "eval_accuracy": 0.5},
        {"step": 100.0, "eval_accuracy": 1.0},
    ]
    assert [row["step"] for row in found] == sorted(row["step"] for row in found)
