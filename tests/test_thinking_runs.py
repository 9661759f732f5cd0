"""Notebook 05's study: its runs, what is asked and read again, bounds, and the cold start."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from lib.dial import dial_tasks
from lib.methods import adaptthink
from lib.policies import load_policy
from lib.runs import start_run
from lib.studies import cold_start, thinking_answers, thinking_bounds, thinking_runs, trainings


@pytest.fixture
def few(monkeypatch, tmp_path):
    """Two updates of two questions, and a handful of questions asked."""
    monkeypatch.setenv("RUNS_DIR", str(tmp_path))
    sets = {
        "balanced": dial_tasks(6, seed=1),
        "deeper": dial_tasks(2, seed=1, depths=[13]),
        "additions": dial_tasks(3, seed=1, world="additions"),
    }
    monkeypatch.setattr(thinking_answers, "question_sets", lambda: sets)
    monkeypatch.setattr(thinking_answers, "validation_questions", lambda: dial_tasks(3, seed=2))
    tiny = {"batches": 2, "prompts": 2, "micro_batch_size": 8, "eval_every": 1}
    for table in (thinking_runs.RECIPES, thinking_runs.STARTS):
        for name, recipe in list(table.items()):
            changed = thinking_runs.Recipe(recipe.method, {**recipe.changes, **tiny}, recipe.beyond)
            monkeypatch.setitem(table, name, changed)
    rows = [row | {"reference_accuracy": 0.5} for row in trained_rows()]
    monkeypatch.setattr(thinking_runs, "training_rows", lambda *_: (rows, rows[:3]))
    return tmp_path


def trained_rows():
    tokenizer = load_policy("dial-thinker")[1]
    tasks = dial_tasks(6, split="train", seed=3, depths=[1, 2])
    return thinking_runs.task_rows(thinking_runs.thinking_tasks(tasks, tokenizer))


@pytest.mark.parametrize("method", ["adaptthink", "decision_only", "nothinking"])
def test_answers_of_a_run_are_kept_and_read_again(few, monkeypatch, method):
    run = start_run(f"05_adaptthink/{method}", "reference", {})
    outcome = trainings.adaptthink(method, 3, run)
    place = few / "shipped" / method / "seed_3"
    place.mkdir(parents=True)
    for name, table in outcome.tables.items():
        table.to_parquet(place / f"{name}.parquet")
    monkeypatch.setattr(thinking_answers, "PLACE", few / "shipped")
    answers = thinking_answers.read_answers(method)
    asked = {"balanced": 6, "deeper": 2, "additions": 3}
    asked |= {"validation": 3} if method == "nothinking" else {}
    assert answers["set"].value_counts().to_dict() == asked
    balanced = thinking_answers.balanced(method)
    assert outcome.summary["accuracy"] == pytest.approx(balanced["correct"].mean())
    assert outcome.summary["nothinking_ratio"] == pytest.approx(balanced["skips"].mean())
    if method == "nothinking":
        assert balanced["skips"].all()
    else:
        forced = thinking_answers.read_forced(method)
        assert (forced["used"] == "nothinking").all() and len(forced) == 6


def test_of_a_cold_start_only_the_watched_questions_are_kept(few):
    run = start_run("05_adaptthink/start", "reference", {})
    outcome = trainings.adaptthink("start/sequence_4e-04", 0, run)
    assert outcome.summary["update"] == [0, 1, 2] and not outcome.tables
    assert max(outcome.summary["log_p"]) < -1 and outcome.summary["skips"] == [0, 0, 0]


@pytest.mark.parametrize("name", [*thinking_runs.RECIPES, *thinking_runs.STARTS])
def test_every_recipe_is_a_configuration(name):
    config = thinking_runs.thinking_config(name, seed=1)
    assert config.base == "dial-thinker" and config.seed == 1


def test_the_remedy_trains_the_first_token_alone():
    config = thinking_runs.DecisionOnly.cpu(**thinking_runs.DECISION)
    log_probs = torch.randn(4, 5, requires_grad=True)
    batch = {
        "advantages": torch.tensor([1.0, -1.0, 0.5, 0.0]),
        "completion_mask": torch.ones(4, 5),
        "is_nothinking": torch.tensor([True, True, False, False]),
        "log_p_nothinking": torch.full((4,), -3.0),
    }
    loss, _ = config.loss(log_probs, log_probs.detach(), batch)
    loss.backward()
    assert log_probs.grad[:, 1:].abs().sum() == 0
    assert log_probs.grad[:, 0].tolist() == pytest.approx([-0.25, 0.25, -0.125, 0.0])


# ---- cold start


@pytest.mark.parametrize("variant", adaptthink.VARIANTS)
@pytest.mark.parametrize("p", [1e-6, 0.03, 0.3, 0.59, 0.7])
def test_the_toys_weight_is_the_librarys(variant, p):
    toy = cold_start.Toy(tokens=(3, 5))
    for mode, outcomes in enumerate((toy.skips, toy.thinks)):
        tokens = toy.tokens[mode]
        log_probs = torch.full((1, tokens), -0.1, dtype=torch.float64)
        log_probs[0, 0] = math.log(p)
        slopes = []
        for advantage, chance in outcomes:
            at = log_probs.clone().requires_grad_()
            gains = torch.tensor([advantage], dtype=torch.float64)
            skips = torch.tensor([mode == 0])
            loss = cold_start.adaptthink_loss(
                at, log_probs, gains, torch.ones(1, tokens), skips, variant=variant
            )
            slopes.append(-chance * torch.autograd.grad(loss, at)[0][0, 0].item())
        ours = cold_start.weight(variant, np.array([p]), outcomes, tokens, toy.epsilon)[0]
        assert cold_start.effective(variant, ours, tokens) == pytest.approx(sum(slopes))


def test_which_losses_leave_the_start():
    """The released loss needs log(1 / P) updates, the published one 1 / P: at 400 times the step."""
    table = cold_start.sweep((5.0, 2000.0), horizon=2500)
    assert table[5.0].to_dict() == {
        "geometric_mean": 64,
        "unadjusted": 63,
        "sequence": math.inf,
        "token": math.inf,
    }
    assert table.loc["sequence", 2000.0] == table.loc["token", 2000.0] == 2474
    assert cold_start.updates_until("sequence", [1e4], horizon=500) == [499]


# ---- bounds


def test_a_router_gives_the_answers_of_the_modes_it_chooses():
    table = pd.DataFrame(
        {"seed": 0, "question": [0, 1], "id": ["a", "b"], "tier": "easy", "depth": [1, 9]}
        | {"right_thinking": [1.0, 1.0], "right_nothinking": [1.0, 0.0]}
        | {"tokens_thinking": [40.0, 100.0], "tokens_nothinking": [10.0, 12.0]}
    )
    found = thinking_bounds.routed(table, table["depth"] <= 6)
    assert found["tokens"].tolist() == [10, 100] and found["correct"].tolist() == [1, 1]
    assert thinking_bounds.in_hindsight(table).tolist() == [True, False]


@pytest.mark.parametrize(
    ("response", "found"),
    [
        ("</think>\nJot 3. Wait, 4.\nIt shows 4.", True),
        ("</think>\nJot 3.\nIt shows 3.", False),
        ("Okay, wait. Let me think.</think>\nIt shows 3.", False),
    ],
)
def test_who_thinks_on_after_the_thought_is_closed(response, found):
    assert thinking_answers.thinks_implicitly(response) is found


def test_oracles_and_the_gap(monkeypatch):
    """Random skipping closes nothing of the gap, a threshold at the reach all of it."""
    rng = np.random.default_rng(0)
    rows = [
        (method, seed, question, f"q{question}", "easy", 1 + question % 12, right, tokens)
        for seed in range(3)
        for question in range(240)
        for method, right, tokens in (
            ("thinking", rng.random() < 0.95, 50 + question % 12),
            ("nothinking", rng.random() < (0.97 if question % 12 < 6 else 0.1), 10),
        )
    ]
    names = ["method", "seed", "question", "id", "tier", "depth", "correct", "tokens"]
    table = thinking_bounds.paired_modes(pd.DataFrame(rows, columns=names))
    monkeypatch.setattr(thinking_bounds, "both_modes", lambda which="balanced": table)
    assert (thinking_bounds.by_depth(table) == (table["depth"] <= 6)).all()
    closed = thinking_bounds.gap_closed(thinking_bounds.routed(table, table["depth"] <= 6), draws=50)
    assert closed[0] == pytest.approx(1)
    blind = thinking_bounds.routed(table, rng.random(len(table)) < 0.5)
    assert abs(thinking_bounds.gap_closed(blind, draws=50)[0]) < 0.2
