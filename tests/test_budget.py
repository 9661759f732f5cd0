"""The budget curve's fast learners against the library's own, and what is shipped of it."""

import numpy as np
import pandas as pd
import pytest
import torch

from lib.bandit.learner import ConfigurationPolicy
from lib.bandit.training import BanditConfig, BanditTrainer
from lib.dial.surface import Surface
from lib.runs import read_json
from lib.studies import bandit_budget
from lib.studies.bandit_posteriors import AnswerByAnswer, Posterior, learning_curve
from lib.studies.bandit_stack import SIZES, WIDTH, Stack, learning_curves, softmax
from lib.studies.bandits import PAPER, RELEASED, SPACE, QuestionSet
from lib.studies.rivals import LinearBandit, best_fixed


def question_set(seed: int = 0, count: int = 12, dim: int = 6) -> QuestionSet:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(4, SPACE.size, generator=generator)
    surface = Surface(values, torch.arange(count) % 4)
    embeddings = torch.randn(count, dim, generator=generator)
    return QuestionSet([None] * count, embeddings, surface, 10 * values)


# SGD, for Adam's first steps blow up what is zero but for rounding; both optimizers are PyTorch's own
PLAIN = {"optimizer": "sgd", "learning_rate": 0.5}
RULES = {
    "ours": (PLAIN | {"batch_size": 3}, 1),
    "ours, an answer an update": (PLAIN | {"batch_size": 1}, 1),
    "mean of all": (PLAIN | {"batch_size": 4, "baseline": "mean", "window": 6}, 1),
    "paper": (PAPER | {"batch_size": 1, "learning_rate": 0.5}, 3),
    "released": (RELEASED | {"batch_size": 1, "window": 4, "learning_rate": 0.1}, 1),
    "released, mended": (RELEASED | {"batch_size": 1, "update": "released_flipped", "learning_rate": 0.1}, 1),
}


@pytest.mark.parametrize("name", RULES)
def test_a_stack_makes_the_updates_of_the_trainer(name):
    """The same questions, choices and rewards: after every update the same logits."""
    changes, head_layers = RULES[name]
    config, train = BanditConfig(updates=30, seed=3, **changes), question_set()
    torch.manual_seed(config.seed)
    policy = ConfigurationPolicy(6, SPACE, width=WIDTH, head_layers=head_layers)
    trainer = BanditTrainer(policy, train.embeddings, train.surface, config)
    stack = Stack([config], [train], head_layers=head_layers)
    for step in range(30):
        trainer.update()
        made = trainer.decisions[-config.batch_size :]
        questions = np.array([[decision["question"] for decision in made]])
        taken = SPACE.split(torch.tensor([decision["action"] for decision in made]))
        choices = np.stack([taken[head].numpy() for head in SPACE.sizes])[None]  # (1, 3, B)
        logits, _ = stack.network.forward(stack.embeddings[[[0]], questions])
        probs = softmax(logits / stack.temperature())
        chance = np.take_along_axis(probs, choices[..., None], -1)[..., 0]
        above = np.take_along_axis(probs.cumsum(-1), choices[..., None], -1)[..., 0]
        luck = np.array([[1.0 - decision["reward"] for decision in made]])
        stack.update(questions, above - chance / 2, luck)
        theirs = policy(train.embeddings)
        ours, _ = stack.network.forward(train.embeddings.numpy()[None])
        for place, (head, size) in enumerate(SPACE.sizes.items()):
            there = theirs[head].detach().numpy()
            assert np.allclose(ours[0, place, :, :size], there, rtol=1e-4, atol=2e-5), (name, step, head)


def test_runs_of_a_stack_do_not_know_each_other():
    configs = [BanditConfig(updates=40, batch_size=2, seed=seed) for seed in (0, 1)]
    sets = [(question_set(seed), question_set(seed)) for seed in (0, 1)]
    (_, together, _), (_, apart, _) = (
        next(learning_curves(configs[part], sets[part], [80])) for part in (slice(0, 2), slice(1, 2))
    )
    assert together[1] == pytest.approx(apart[0], abs=1e-6)
    with pytest.raises(ValueError, match="seed, learning_rate and entropy_bonus alone"):
        Stack([configs[0], BanditConfig(updates=40, batch_size=3)], [sets[0][0]] * 2)


def test_heads_that_are_held_stay():
    train = question_set()
    stack = Stack([BanditConfig(updates=20, batch_size=4)], [train], held=np.array([[2, -1, -1]]))
    stack.train(20)
    assert set(SPACE.split(stack.greedy(0, train))["instruction"].tolist()) == {2}
    logits, _ = stack.network.forward(stack.embeddings)
    assert not logits[0, 0, :, : SIZES[0, 0, 0]].any() and logits[0, 2, :, : SIZES[2, 0, 0]].any()


def test_trials_follow_one_another_and_the_released_schedule_counts_questions():
    config = BanditConfig(updates=20, batch_size=1, **RELEASED)
    stack = Stack([config], [question_set()], trials=4)
    asked = []
    for stack.step in range(10):
        asked.append(int(stack._questions(np.zeros((1, 1)))[0, 0]))
    assert asked == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2] and stack.temperature() == pytest.approx(1 - 2e-4)


def test_an_answer_at_a_time_is_the_same_ridge_regression():
    train = question_set()
    contexts = torch.cat([train.embeddings, torch.ones(12, 1)], 1)
    theirs = LinearBandit(7, 5, rule="lin_ucb", exploration=1.0, ridge=2.0)
    ours = Posterior(contexts.numpy(), 5, ridge=2.0)
    stream = np.random.default_rng(0)
    for question, arm, reward in zip(
        stream.integers(12, size=60), stream.integers(5, size=60), stream.random(60), strict=True
    ):
        theirs.learn(contexts[[question]], torch.tensor([arm]), torch.tensor([reward], dtype=torch.float32))
        ours.learn(question, arm, reward)
    estimates = theirs.scores(contexts, None).numpy()
    assert np.allclose(ours.means.T, estimates, atol=1e-4)
    assert np.allclose((contexts.numpy() @ ours.weights.T), estimates, atol=1e-4)
    widths = theirs.scores(contexts, torch.Generator()).numpy() - estimates
    assert np.allclose(np.stack([ours.widths(q) for q in range(12)]), widths, atol=1e-3)


@pytest.mark.parametrize("method", bandit_budget.LINEAR)
def test_thompson_and_ucb_learn(method):
    train = question_set()
    run = AnswerByAnswer(train, **bandit_budget.LINEAR[method], exploration=0.2, ridge=1.0, seed=0)
    ((_, actions),) = learning_curve(run, train, [1500])
    reward = train.surface.expected(train.all, torch.tensor(actions)).mean()
    assert reward > train.surface.values.mean() + 0.03  # a random surface has no heads to factorise


@pytest.mark.parametrize(("requests", "start"), [(20, 12), (72, None), (500, 36)])
def test_the_search_for_a_fixed_action_keeps_to_its_budget(requests, start):
    asked = []

    def environment(questions, actions, seed):
        asked.append(len(actions))
        return torch.ones(len(actions))

    best_fixed(72, environment, questions=10, requests=requests, seed=0, start=start)
    assert 0 < sum(asked) <= requests


# ---- what is shipped


def shipped(study: str) -> dict[str, pd.DataFrame]:
    paths = (bandit_budget.RUNS / study).glob("*/rewards.csv")
    return {path.parent.name: pd.read_csv(path) for path in paths}


@pytest.mark.parametrize("method", bandit_budget.METHODS)
def test_every_budget_is_shipped_with_ten_seeds(method):
    rows = shipped("06_budget")[method]
    smallest = bandit_budget.BATCHES.get(method.removesuffix("_anytime"), 1)
    wanted = [count for count in bandit_budget.ANSWERS if count >= smallest]
    assert (rows.groupby("answers")["seed"].nunique() == 10).all()
    assert sorted(set(rows["answers"])) == wanted and rows["reward"].between(0, 1).all()


@pytest.mark.parametrize("method", bandit_budget.TUNED)
def test_the_settings_are_those_that_tuning_chose(method):
    used = read_json(bandit_budget.RUNS / "06_budget" / method / "provenance.json")["settings"]
    assert used == {name: bandit_budget.chosen(method, name) for name in bandit_budget.RANGES}


def test_a_linear_bandit_is_ahead_at_few_answers_and_reinforce_passes_the_best_fixed_action():
    rewards = {
        name: rows.set_index(["answers", "seed"])["reward"] for name, rows in shipped("06_budget").items()
    }
    for method in ("reinforce_1", "reinforce_4", "reinforce_64"):
        assert (rewards["lin_ts"] - rewards[method])[400].mean() > 0.1
        assert (rewards[method] - rewards["best_fixed"])[800].mean() > 0.1
        assert rewards[method][400].mean() < 0.6 * rewards[method][25_600].mean()


def test_what_was_learnt_does_not_carry_over_to_an_llm_of_other_habits():
    rows = shipped("06_beyond")["learned"].groupby("condition")["reward"].mean()
    assert rows["other_habits"] + 0.2 < rows["other_habits_own"]
    assert rows["sums_from_others"] < 0.2 < 0.5 < rows["sums"]
