"""Notebook 04's runs: every mode follows from the answers that were kept."""

from functools import partial

import pandas as pd
import pytest

from lib.dial import dial_tasks
from lib.engines.base import Sampling
from lib.measure.modes import answer
from lib.policies.load import load_policy
from lib.studies import arm_choice, arm_modes, arm_tables, budgets
from lib.studies.budgets import close_response


@pytest.fixture(scope="module")
def policy():
    return load_policy("dial-arm")


def test_cut_responses_are_those_that_a_limit_gives(policy):
    """Asked anew with so few tokens, the policy writes the same up to the limit."""
    tasks = dial_tasks(12, seed=5, depths=range(1, 13))
    sampling = Sampling(arm_modes.TEMPERATURE, seed=3)
    asked = partial(answer, policy, tasks, temperature=sampling.temperature, seed=3)
    whole = asked()
    for budget in (12, 64):
        limited = asked(max_new_tokens=budget)
        cut = budgets.cut_and_close(policy, tasks, whole, budget, sampling)
        for one, given in zip(cut, limited, strict=True):
            same = (
                one.text.startswith(close_response(given.text)) if given.truncated else one.text == given.text
            )
            assert same and one.tokens >= given.tokens


def test_a_run_in_every_mode(policy, monkeypatch):
    monkeypatch.setattr(arm_modes, "PROGRAMS", 2)
    tasks = dial_tasks(3, seed=5, depths=[1, 4, 9])
    answers = arm_modes.compact(arm_modes.ask_in_every_way(policy, tasks, seed=0), tasks)
    counts = answers["mode"].value_counts()
    assert [counts[mode] for mode in ("adaptive", "code", "executed", "budget_12")] == [24, 3, 2, 3]
    found = arm_tables.mode_summary(answers)
    assert list(found) == arm_tables.MODES
    assert found["majority"]["mean_tokens"] == pytest.approx(8 * found["adaptive"]["mean_tokens"])
    assert found["long_cot"]["long_cot_use"] == 1


def given(*rows, question=0):
    """Answers to a question that 7 is right for: (mode, used, answer, tokens) each."""
    table = pd.DataFrame(rows, columns=["mode", "used", "answer", "tokens"]).astype({"answer": object})
    table = table.assign(question=question, id=str(question), depth=5, tier="medium", policy="p", seed=0)
    return table.assign(sample=table.groupby("mode").cumcount(), correct=table["answer"] == "7")


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
    names, costs = arm_tables.FORMATS, (4, 8, 10, 60)
    answers = given(*zip(names, names, [*short, "7"], costs, strict=True))
    found = arm_tables.every_run(answers, ["consensus"]).iloc[0]
    assert [found["correct"], found["tokens"], found["long_cot"]] == [right, tokens, long]


def test_votes_from_the_answers():
    four = [("direct", None, 4), ("code", "3", 9), ("long_cot", "7", 50), ("long_cot", "7", 50)]
    answers = given(*(("adaptive", *one) for one in four))
    assert [arm_tables.by_vote(answers, count)["correct"].item() for count in (1, 2, 3, 4)] == [0, 0, 0, 1]
    found = arm_tables.by_vote(answers, 3)
    assert [found["tokens"].item(), found["long_cot"].item()] == [63, pytest.approx(1 / 3)]


def test_a_chosen_format_is_held_against_the_same_format_forced_on_the_same_question():
    first = given(("adaptive", "direct", "7", 4), ("adaptive", "code", "7", 9), ("direct", "direct", "3", 4))
    second = given(("adaptive", "code", "3", 9), ("direct", "direct", "7", 4), question=1)
    table = arm_choice.chosen_and_forced(pd.concat([first, second]))
    found = table[table["format"] == "direct"].set_index("what")
    assert found.loc["chosen", ["accuracy", "n"]].tolist() == [1, 1]
    assert found.loc["forced, where chosen", "accuracy"] == 0
    assert found.loc["difference", "accuracy"] == 1
    assert found.loc["forced, all", ["accuracy", "n"]].tolist() == [0.5, 2]


def test_what_a_budget_cuts_and_what_cannot_be_read():
    first = given(("adaptive", "long_cot", "7", 60), ("budget_12", "invalid", None, 18))
    second = given(("adaptive", "direct", "7", 4), ("budget_12", "direct", "7", 4), question=1)
    [line] = arm_choice.under_budget(pd.concat([first, second])).to_dict("records")
    assert [line[name] for name in ("budget", "accuracy", "cut", "unreadable")] == [12, 0.5, 0.5, 1]


# ---- what notebook 04 says of the shipped answers ------------------------------------------------


@pytest.fixture(scope="module")
def shipped():
    return arm_tables.read_answers()


@pytest.fixture(scope="module")
def means(shipped):
    cells = arm_tables.every_run(shipped)
    return cells.groupby(["policy", "mode"])[["correct", "tokens"]].mean()


def test_the_runs_have_answered_all_questions(shipped):
    assert set(shipped["policy"]) == set(arm_tables.POLICIES)
    for _, run in shipped.groupby(["policy", "seed"]):
        counts = run["mode"].value_counts()
        assert counts["adaptive"] == 8 * 600 and {counts[format] for format in arm_tables.FORMATS} == {600}
    known = arm_modes.test_questions()
    assert [known[place].depth for place in shipped["question"]] == shipped["depth"].tolist()


def test_what_is_said_to_be_dominated(means):
    accuracy, tokens = means["correct"], means["tokens"]
    consensus, thinking, adaptive = ("ada_grpo", "consensus"), ("grpo", "adaptive"), ("ada_grpo", "adaptive")
    assert tokens[adaptive] < tokens[thinking] < tokens[consensus] < tokens["ada_grpo", "majority"]
    assert accuracy[thinking] > accuracy[consensus] - 0.005
    assert accuracy["ada_grpo", "long_cot"] > accuracy[consensus] - 0.005
    assert accuracy[adaptive] < accuracy[thinking]


def test_who_gains_from_a_vote(means):
    gain = means["correct"].unstack()["majority"] - means["correct"].unstack()["adaptive"]
    assert gain["sft"] > gain["base"] > gain["ada_grpo"] > gain["grpo"] > -0.002
    assert abs(means["correct"]["ada_grpo", "majority"] - means["correct"]["grpo", "majority"]) < 0.01
    assert means["correct"]["base", "adaptive"] > means["correct"]["sft", "adaptive"]


def test_forcing_is_as_good_as_choosing_and_a_router_needs_no_rl(shipped, means):
    ada, sft = (shipped[shipped["policy"] == name] for name in ("ada_grpo", "sft"))
    for answers in (ada, sft):
        table = arm_choice.chosen_and_forced(answers)
        assert table.loc[table["what"] == "difference", "accuracy"].abs().max() < 0.04
    router = arm_choice.router_table(sft, arm_choice.route).loc["router"]
    assert router["accuracy"] > means.loc[("grpo", "adaptive"), "correct"] - 0.01
    assert router["tokens"] < means.loc[("grpo", "adaptive"), "tokens"] / 2


def test_a_tight_budget_favours_the_short(shipped):
    table = arm_choice.under_budget(shipped).set_index(["policy", "budget"])["accuracy"]
    for budget in (4, 12, 24, 40):
        assert table["ada_grpo", budget] > table["grpo", budget] + 0.05
    assert abs(table["ada_grpo", 64] - table["grpo", 64]) < 0.06
    assert table["grpo", 128] > table["ada_grpo", 128]
    assert table["grpo", 24] < table["grpo", 4] + 0.05
