"""Notebook 04's runs: every mode follows from the answers that were kept."""

import pandas as pd
import pytest

from lib.dial import dial_tasks
from lib.measure.modes import answer
from lib.policies.load import load_policy
from lib.studies import arm_modes, arm_tables


@pytest.fixture(scope="module")
def policy():
    return load_policy("dial-arm")


def test_cut_responses_are_those_that_a_budget_gives(policy):
    tasks = dial_tasks(12, seed=5, depths=range(1, 13))
    whole = answer(policy, tasks, temperature=arm_modes.TEMPERATURE, seed=3)
    for budget in (12, 64):
        given = answer(policy, tasks, budget=budget, temperature=arm_modes.TEMPERATURE, seed=3)
        cut = arm_modes.cut_and_close(policy, tasks, whole, budget)
        assert [(one.text, one.tokens) for one in cut] == [(one.text, one.tokens) for one in given]


def test_a_run_in_every_mode(policy, monkeypatch):
    monkeypatch.setattr(arm_modes, "PROGRAMS", 2)
    tasks = dial_tasks(3, seed=5, depths=[1, 4, 9])
    answers = arm_modes.compact(arm_modes.ask_in_every_way(policy, tasks, seed=0), tasks)
    assert answers["mode"].value_counts()[["adaptive", "code", "executed", "budget_12"]].tolist() == [
        24,
        3,
        2,
        3,
    ]
    modes = arm_tables.in_every_mode(answers).set_index(["mode", "question"])
    assert modes.index.get_level_values("mode").unique().tolist() == arm_tables.MODES
    assert modes.loc["majority", "tokens"].tolist() == pytest.approx(8 * modes.loc["adaptive", "tokens"])
    assert (
        modes.loc[("consensus", 0), "tokens"] == modes.loc[[(f, 0) for f in arm_tables.SHORT], "tokens"].sum()
    )


def rows(mode, *given):
    """Answers to question 0, which is answered by 7: (format, answer, tokens) each."""
    names = ["used", "answer", "tokens"]
    table = pd.DataFrame(given, columns=names).assign(mode=mode, question=0, depth=5)
    return table.assign(sample=range(len(given)), correct=[one[1] == "7" for one in given])


@pytest.mark.parametrize(
    ("short", "right", "tokens", "long"),
    [
        (["7", "7", "7"], 1, 22, 0),
        (["3", "3", "3"], 0, 22, 0),
        (["3", "3", "7"], 1, 82, 1),
        ([None] * 3, 1, 82, 1),
    ],
)
def test_consensus_from_the_answers(short, right, tokens, long):
    given = zip(arm_tables.FORMATS, [*short, "7"], (4, 8, 10, 60), strict=True)
    answers = pd.concat([rows(one[0], one) for one in given] + [rows("adaptive", ("direct", "7", 4))])
    modes = arm_tables.in_every_mode(answers).set_index("mode")
    assert modes.loc["consensus", ["correct", "tokens", "long_cot"]].tolist() == [right, tokens, long]


def test_votes_from_the_answers():
    answers = rows(
        "adaptive", ("direct", None, 4), ("code", "3", 9), ("long_cot", "7", 50), ("long_cot", "7", 50)
    )
    assert [arm_tables.votes(answers, count)["correct"].item() for count in (1, 2, 3, 4)] == [0, 0, 0, 1]
    assert arm_tables.votes(answers, 3)[["tokens", "long_cot"]].values.tolist() == [
        [63, pytest.approx(1 / 3)]
    ]
