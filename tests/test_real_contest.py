"""The contest on real questions: budgets, what counts as wrong or missing, tables by hand, a dial LLM."""

import json
import math
from collections import Counter

import pandas as pd
import pytest

from lib.bandit.actions import ActionSpace
from lib.bandit.llms import CUT, LocalLLM
from lib.dial import frozen_llm
from lib.dial.tasks import dial_task
from lib.policies.load import load_policy
from lib.runs import ROOT, start_run
from lib.studies import real_tables
from lib.studies.embedders import hashed_ngrams
from lib.studies.real_questions import LEARNERS, METHODS, Contest, comparable, split
from lib.tasks import Task

SPACE = ActionSpace(("guess.", "count.", "ask."), (0.0, 0.5), (3, 4))


def tasks(count, first=0):
    """Questions of two kinds, which want to be asked differently."""
    words = ("apples", "stars")
    return [
        Task(f"t/{n}", f"How many {words[n % 2]} are {n}?", str(n), "number", "easy", "t")
        for n in range(first, first + count)
    ]


class Counted:
    """Right where apples are counted and stars are guessed; else wrong, cut, or no reply at all."""

    def __init__(self, lost=()):
        self.asked, self.lost = Counter(), lost

    def ask(self, requests):
        self.asked["calls"] += 1
        return [self.reply(request) for request in requests]

    def reply(self, request):
        self.asked["requests"] += 1
        number = request.prompt.split(" are ")[1].split("?")[0]
        if int(number) in self.lost:
            return None
        if "ask." in request.prompt:
            return CUT
        right = ("apples" in request.prompt) == ("count." in request.prompt)
        return f"So it is.\nAnswer: {number if right else 'none'}"


def contest(llm, **options):
    given = {"budget": 240, "batch": 8, "votes": 3, "space": SPACE, **options}
    return Contest(llm, tasks(20), tasks(30, 100), hashed_ngrams, **given)


@pytest.fixture(scope="module")
def answers():
    return contest(Counted(lost=(100, 101))).run(show=lambda line: None)


def test_every_method_answers_every_question_once(answers):
    assert list(answers["method"].unique()) == list(METHODS) and len(answers) == 30 * len(METHODS)
    lost = answers[answers["id"].isin(["t/100", "t/101"])]
    assert lost["correct"].isna().all() and answers["correct"].isna().sum() == len(lost)
    assert (answers.query("cut")["correct"] == 0).all() and answers["cut"].any()
    assert set(answers.query("method == 'self-consistency'")["asked"]) == {3}


@pytest.mark.parametrize("method", LEARNERS)
def test_no_method_learns_from_more_than_its_budget(method):
    llm = Counted()
    actions = contest(llm).actions(method)
    assert 200 <= llm.asked["requests"] <= 240 and len(actions) == 30
    shares = [SPACE.decode(int(action)).instruction != "ask." for action in actions]
    assert sum(shares) == 30  # what is cut earns nothing, so it is not chosen


def test_the_table_says_who_is_ahead(answers):
    table = real_tables.summary(answers)
    assert 0.9 < table.loc["learned", "right"] <= 1 and table.loc["best fixed", "right"] == pytest.approx(0.5)
    assert table.loc["CoT", "right"] == pytest.approx(0.5) and table.loc["random", "cut"] > 0.1
    assert (table["n"] == 28).all() and (table["missing"] == 2).all()
    assert (table["low"] <= table["right"]).all() and (table["high"] <= 1).all()
    assert table.loc["best fixed", "p (Holm)"] < 0.001 and math.isnan(table.loc["learned", "lead"])
    low, high = table.loc["best fixed", ["lead low", "lead high"]]
    assert 0.2 < low < table.loc["best fixed", "lead"] < high < 0.75
    assert table.loc["best fixed", "lead"] == pytest.approx(table.loc["learned", "right"] - 0.5)
    assert dict(table["learnt from"]) == {name: 240 if name in LEARNERS else 0 for name in METHODS}


def test_holm_by_hand():
    assert real_tables.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert real_tables.holm([]) == [] and real_tables.holm([0.9, 0.8]) == [1.0, 1.0]


def test_a_judge_is_the_reward_and_stands_beside_exact_match():
    def judge(prompts, completions, answer, kind):
        return [
            0.9 if reply.endswith(reference) else 0.2
            for reply, reference in zip(completions, answer, strict=True)
        ]

    made = contest(Counted(), judge=judge)
    found = made.run(show=lambda line: None)
    assert set(found.loc[~found["cut"], "judged"]) == {0.9, 0.2} and set(
        found.loc[found["cut"], "judged"]
    ) == {0.0}
    assert made.reward(made.test[0], CUT) == 0.0 and made.reward(made.test[0], "Answer: 100") == 0.9
    table = real_tables.summary(found)
    assert table.loc["learned", "judged low"] <= table.loc["learned", "judged"] <= 0.9
    assert table.loc["learned", "judged"] > table.loc["random", "judged"] > 0.1
    agreed = real_tables.agreement(found)
    assert agreed.loc["all", ["agree", "auc", "judged if right", "if wrong"]].tolist() == pytest.approx(
        [1, 1, 0.9, 0.2]
    )
    found.loc[:, "judged"] = 0.6
    agreed = real_tables.agreement(found)
    assert (
        agreed.loc["all", "auc"] == 0.5
        and agreed.loc["all", "agree"] == found.query("not cut")["correct"].mean()
    )


def test_another_judge_or_reader_is_another_training():
    def judge(prompts, completions, answer, kind):
        return [1.0 for _ in completions]

    llm = Counted()
    llm.setting = "m"
    made = [contest(llm), contest(llm, judge=judge), contest(llm, read=lambda reply: reply)]
    settings = [one.world(one.train).setting["reward"] for one in made]
    assert settings[0] not in settings[1:] and settings[1] != settings[2]


def test_the_election_and_its_ties():
    made = contest(Counted())
    assert made._elect(["Answer: 1", "Answer: 2 ", "no", "Answer: 2"]) == "Answer: 2 "
    assert made._elect(["no", None, CUT]) == CUT and made._elect([None, None]) is None


def test_halving_gets_as_many_actions_as_its_budget_can_compare():
    assert [comparable(8800, 400), comparable(12, 400), comparable(8800, 1)] == [64, 12, 1]


def test_the_estimate_bounds_what_is_asked():
    llm = Counted()
    made = contest(llm)
    assert made.estimate() == f"{3 * 240 + 30 * 8:,} requests to send at most"
    made.run(show=lambda line: None)
    assert 0.8 * 960 < llm.asked["requests"] <= 960 + 1


def test_questions_of_any_source_are_drawn_apart(tmp_path):
    samples = ROOT / "data" / "samples"
    for source, path in {
        "gsm8k": samples,
        "csqa": samples,
        "adareasoner": samples / "adareasoner.json",
    }.items():
        learn, test = split(source, str(path), train=2, test=4)
        assert len(learn) == 2 and 1 <= len(test) <= 4 and not {t.key for t in learn} & {t.key for t in test}
    rows = [{"question": f"How many are {n % 7}?", "answer": f"#### {n % 7}"} for n in range(20)]
    (tmp_path / "gsm8k_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    learn, test = split("gsm8k", str(tmp_path), train=3, test=900)
    assert len(learn) == 3 and len(test) == 4
    with pytest.raises(ValueError, match="gsm8k has 7 questions: with 7 to learn from, none is left"):
        split("gsm8k", str(tmp_path), train=7)


# ---- a dial LLM ------------------------------------------------------------------------------------


def dial_contest(llm, *, budget=48, test=12, **options):
    """The dial LLM's own prompts in the frame of a contest."""
    pools = [
        frozen_llm.sample_mixture_questions(n, seed=5, split=s)
        for n, s in ((12, "validation"), (test, "test"))
    ]

    def render(task, action):
        return frozen_llm.PROMPT.format(question=task.question, style=action.instruction, steps=action.steps)

    asked = {
        "space": frozen_llm.action_space(),
        "render": render,
        "cot": lambda task: frozen_llm.PROMPT.format(question=task.question, style="think", steps=6),
        "read": frozen_llm.read_answer,
    }
    learn, held_out = ([dial_task(question) for question in pool] for pool in pools)
    return Contest(llm, learn, held_out, hashed_ngrams, budget=budget, votes=2, **asked | options)


@pytest.mark.slow
def test_a_dial_llm_and_a_run_that_goes_on(tmp_path, private_runs):
    model = load_policy("dial-llm")
    run = start_run("contest", "cpu", {})
    first = dial_contest(LocalLLM(model, cache=tmp_path / "answers.jsonl")).run(run, show=lambda line: None)
    again = LocalLLM(model, cache=tmp_path / "answers.jsonl")
    again.engine = None  # nobody to ask: all is kept
    pd.testing.assert_frame_equal(dial_contest(again).run(show=lambda line: None), first)
    assert first["correct"].isin([0.0, 1.0]).all() and 0 < first["correct"].mean() < 1
