"""Notebook 03's tables and its one step of RL: on answers that can be counted by hand."""

import pandas as pd
import pytest
import torch

from lib.dial import dial_tasks
from lib.formats import ReasoningFormat
from lib.measure.modes import answer
from lib.methods.ada_grpo import AdaGRPO
from lib.methods.grpo import grpo_loss
from lib.policies.load import load_policy
from lib.studies import arm_beside, changes, format_choice, one_step
from lib.studies.causes import VARIANTS
from lib.studies.tag_shift import tag_probabilities

DIRECT, SHORT, CODE, LONG = (format.value for format in ReasoningFormat)


def answers(*rows):
    """Rows (method, seed, depth, used, correct, tokens); each is a question of its own within its run."""
    table = pd.DataFrame(rows, columns=["method", "seed", "depth", "used", "correct", "tokens"])
    table["id"] = table.groupby(["method", "seed"]).cumcount().astype(str)
    table["tier"] = pd.cut(table["depth"], [0, 2, 6, 12], labels=["easy", "medium", "hard"]).astype(str)
    return table.assign(set="balanced", long=table["used"] == LONG)


TWO = answers(
    ("grpo", 0, 1, LONG, True, 40),
    ("grpo", 0, 4, LONG, True, 64),
    ("grpo", 0, 9, LONG, True, 96),
    ("ada_grpo", 0, 1, DIRECT, True, 4),
    ("ada_grpo", 0, 4, SHORT, True, 16),
    ("ada_grpo", 0, 9, CODE, False, 30),
)


def test_what_is_saved_and_what_it_costs():
    of = dict(tuple(TWO.groupby("method")))
    found = format_choice.compared(of["ada_grpo"], of["grpo"])
    assert found["all"][0][0] == pytest.approx(1 - 50 / 200) and found["all"][1][0] == pytest.approx(-1 / 3)
    assert found["easy"][0][0] == pytest.approx(0.9) and found["easy"][1][0] == 0
    table = format_choice.savings_table({"all": 0.75, "accuracy difference": -0.5}, found)
    assert table.loc[("accuracy, points", "all"), "this run"] == "-50.00"


def test_lost_points_and_crossed_choices():
    lost = format_choice.lost_points(TWO)
    assert lost.loc[("Ada-GRPO", "hard")].tolist() == [100, 0, 0]
    skill = {"grpo": 1.0, "ada_grpo": 0.5}
    forced = pd.DataFrame(
        [
            (method, depth, mode, accuracy * (mode == LONG or depth == 1 or (mode == SHORT and depth == 4)))
            for method, accuracy in skill.items()
            for depth in (1, 4, 9)
            for mode in (DIRECT, SHORT, CODE, LONG)
        ],
        columns=["method", "depth", "mode", "correct"],
    )
    table = format_choice.crossed(TWO, forced)
    assert table.loc["GRPO", "GRPO"] == 1 and table.loc["GRPO", "Ada-GRPO"] == 0.5
    assert table.loc["Ada-GRPO", "GRPO"] == pytest.approx(2 / 3)


def test_the_telling_group_is_valid_and_mixed():
    def group(place, used, correct):
        return pd.DataFrame({"group": place, "used": used, "correct": correct})

    invalid = group(0, [DIRECT, SHORT, CODE, "invalid"], [True, True, True, False])
    silent = group(1, [DIRECT, SHORT, CODE, LONG], [True] * 4)
    telling = group(2, [DIRECT, SHORT, LONG, LONG], [False, True, True, True])
    assert format_choice.telling_group(pd.concat([invalid, silent, telling], ignore_index=True)) == 2


def test_every_line_is_of_a_variant():
    assert set(changes.CHANGES) <= set(VARIANTS)


def test_what_changed_format_is_counted_in_all_formats():
    """One seed goes from long CoT to direct in half of its answers, one cannot be read any more."""
    start = answers(*[("sft", 0, 1, used, True, 4) for used in (LONG, LONG, SHORT, CODE)])
    after = answers(
        *[("grpo", 0, 1, used, True, 4) for used in (DIRECT, DIRECT, SHORT, CODE)],
        *[("grpo", 1, 1, "invalid", False, 4) for _ in range(4)],
    )
    assert changes.moved(after, start) == pytest.approx((0.75, 0.5, 1.0))
    assert changes.moved(start, start) == (0, 0, 0)


def test_each_line_is_judged_by_what_its_story_is_about():
    same = {"accuracy": (1.0, 1.0, 1.0), "hard": (1.0, 1.0, 1.0), "seeds": 3, "long": (0.2, 0.2, 0.2)}
    rows = {name: same | {"moved": (0.5, 0.4, 0.6)} for name in ("grpo", "grpo_easy_only", "ada_grpo")}
    assert changes.effects_table(pd.DataFrame(rows).T)["so it is"].tolist() == ["NO", "NO", "yes"]


def test_a_skill_is_shown_up_to_where_the_format_reaches():
    forced = pd.DataFrame(
        [
            ("sft", 0, depth, mode, depth < 6)
            for depth in (1, 2, 6, 7)
            for mode in (DIRECT, SHORT, CODE, LONG)
        ],
        columns=["method", "seed", "depth", "mode", "correct"],
    )
    forced["id"] = forced.groupby(["mode"]).cumcount().astype(str)
    forced = pd.concat([forced, forced.assign(depth=forced["depth"].replace({6: 8, 7: 12}))])
    found = format_choice.skills(forced)
    assert found.loc[("direct", "SFT"), [2, 6]].tolist() == ["1.00", ""]
    assert found.loc[("short CoT", "SFT"), "at its edge"] == "0.00 [0.00, 0.00]"


def test_the_recipe_says_what_a_configuration_holds():
    table = arm_beside.recipe(AdaGRPO.cpu(learning_rate=1e-3))
    assert table.loc["learning rate", "here"] == "0.001, constant"
    assert table.loc["weight decay", "ARM, code"] == "0.01"
    assert set(arm_beside.recipe(AdaGRPO.code("-")).loc["reward 1 for"][["here", "ARM, code"]]) == {
        "a right answer, lenient format"
    }


def test_one_step_makes_rewarded_tags_likelier_on_other_questions():
    policy = load_policy("dial-sft")
    asked = [task for task in dial_tasks(6, seed=1) for _ in range(4)]
    drawn = answer(policy, asked, temperature=1.0, seed=0)
    pay = torch.tensor([1.0 if rollout.format == LONG else -1.0 for rollout in drawn])
    moved = one_step.after_one_step(policy, asked, drawn, pay, loss=grpo_loss, rate=0.1)
    others = dial_tasks(30, seed=2)
    before, after = (tag_probabilities(*p, others) for p in (policy, moved))
    assert before.sum(axis=1).to_numpy() == pytest.approx(1, abs=0.01)
    assert (after[LONG] > before[LONG]).all()


def test_log_probs_are_of_the_tokens_that_were_drawn():
    policy = load_policy("dial-sft")
    asked = dial_tasks(6, seed=1)
    drawn = answer(policy, asked, temperature=1.0, seed=0)
    log_probs, mask = one_step.token_log_probs(policy, asked, drawn)
    assert mask.sum(1).tolist() == [rollout.tokens for rollout in drawn]
    assert (log_probs * mask).min() > -12
