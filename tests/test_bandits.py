"""Linear bandits against ridge regression in closed form, successive halving, off-policy estimates."""

import pytest
import torch

from lib.bandit.actions import ActionSpace
from lib.studies import off_policy
from lib.studies.rivals import ConfigurationBandit, LinearBandit, best_fixed, random_actions, regret
from lib.studies.simulated_surface import simulated_surface

SPACE = ActionSpace(("a", "b", "c"), (0.0, 0.5), (1, 2))


def test_a_linear_bandit_is_ridge_regression_per_arm():
    generator = torch.Generator().manual_seed(0)
    contexts = torch.randn(40, 3, generator=generator)
    arms = torch.randint(2, (40,), generator=generator)
    rewards = torch.rand(40, generator=generator)
    bandit = LinearBandit(3, 2, rule="lin_ucb", exploration=0.5, ridge=2.0)
    bandit.learn(contexts, arms, rewards)
    new = torch.randn(5, 3, generator=generator)
    for arm in range(2):
        x, y = contexts[arms == arm], rewards[arms == arm]
        matrix = x.T @ x + 2.0 * torch.eye(3)
        weights = torch.linalg.solve(matrix, x.T @ y)
        width = (new @ torch.linalg.inv(matrix) * new).sum(-1).sqrt()
        assert torch.allclose(bandit.scores(new, None)[:, arm], new @ weights, atol=1e-5)
        assert torch.allclose(bandit.scores(new, generator)[:, arm], new @ weights + 0.5 * width, atol=1e-5)


def test_thompson_sampling_draws_around_the_estimate_with_its_width():
    bandit = LinearBandit(2, 1, rule="lin_ts", exploration=0.3)
    contexts = torch.tensor([[1.0, 2.0]]).expand(20_000, -1)
    draws = bandit.scores(contexts, torch.Generator().manual_seed(0))[:, 0]
    assert draws.mean().item() == pytest.approx(0, abs=0.02)
    assert draws.std().item() == pytest.approx(0.3 * 5**0.5, rel=0.03)


def test_epsilon_greedy_explores_as_often_as_it_says():
    bandit = LinearBandit(1, 10, rule="epsilon_greedy", exploration=0.2)
    bandit.learn(torch.ones(50, 1), torch.full((50,), 4), torch.ones(50))
    chosen = bandit.scores(torch.ones(20_000, 1), torch.Generator().manual_seed(0)).argmax(-1)
    assert (chosen != 4).float().mean().item() == pytest.approx(0.2 * 0.9, abs=0.01)


def test_heads_that_would_move_in_lockstep_are_refused():
    with pytest.raises(ValueError, match="'lin_ts', got 'lin_tss'; did you mean 'lin_ts'"):
        ConfigurationBandit(16, SPACE, rule="lin_tss", exploration=1.0)
    with pytest.raises(ValueError, match="lockstep"):
        ConfigurationBandit(16, SPACE, rule="lin_ucb", exploration=1.0, factorised=True)


@pytest.mark.parametrize(
    ("rule", "factorised"),
    [
        ("epsilon_greedy", False),
        ("epsilon_greedy", True),
        ("lin_ucb", False),
        ("lin_ts", False),
        ("lin_ts", True),
    ],
)
def test_linear_bandits_learn_the_surface(rule, factorised):
    embeddings, surface = simulated_surface(SPACE, kinds=3, seed=3, questions=60)
    exploration = 1.0 if rule == "lin_ucb" else 0.1
    bandit = ConfigurationBandit(16, SPACE, rule=rule, exploration=exploration, factorised=factorised)
    bandit.train(embeddings, surface, updates=60, batch_size=16, seed=0)
    questions = torch.arange(60)
    reward = surface.expected(questions, bandit.choose(embeddings)).mean()
    random = surface.values[surface.contexts].mean()
    assert reward > random + 0.5 * (surface.optimal(questions).mean() - random)


def test_too_many_arms_are_refused_before_memory_is_gone():
    with pytest.raises(ValueError, match="factorised"):
        ConfigurationBandit(768, ActionSpace.paper(), rule="lin_ucb", exploration=1.0)


def test_best_fixed_finds_the_best_single_action():
    _, surface = simulated_surface(SPACE, kinds=2, seed=1)
    everywhere = surface.values[surface.contexts].mean(0)
    action, means = best_fixed(SPACE.size, surface, questions=100, requests=6000, seed=0)
    assert everywhere[action] >= everywhere.max() - 0.03
    assert means[action].item() == pytest.approx(everywhere[action].item(), abs=0.05)


def test_regret_of_the_optimum_is_zero_and_random_grows():
    _, surface = simulated_surface(SPACE, seed=1)
    questions = torch.arange(100)
    best = surface.values[surface.contexts].argmax(-1)
    assert regret(surface, questions, best).abs().max() < 1e-6
    assert regret(surface, questions, random_actions(100, SPACE.size, 0))[-1] > 10


# ---- off-policy


def test_estimates_by_hand():
    rewards = torch.tensor([1.0, 0.0, 1.0, 1.0])
    weights = off_policy.importance_weights(torch.tensor([0.5, 0.5, 0.1, 0.1]), torch.tensor([0.25] * 4))
    assert weights.tolist() == pytest.approx([2.0, 2.0, 0.4, 0.4])
    assert off_policy.ips(rewards, weights).mean().item() == pytest.approx(0.7)
    assert off_policy.snips(rewards, weights).item() == pytest.approx(2.8 / 4.8)
    assert off_policy.effective_sample_size(weights) == pytest.approx(4.8**2 / 8.32)
    with pytest.raises(ValueError, match="propensities"):
        off_policy.importance_weights(torch.ones(1), torch.zeros(1))


def test_all_estimators_find_the_true_value():
    generator = torch.Generator().manual_seed(0)
    truth = torch.tensor([0.2, 0.5, 0.9])
    logging, target = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.1, 0.2, 0.7])
    arms = torch.multinomial(logging, 40_000, replacement=True, generator=generator)
    rewards = torch.bernoulli(truth[arms], generator=generator)
    weights = off_policy.importance_weights(target[arms], logging[arms])
    value = (truth * target).sum().item()
    assert off_policy.ips(rewards, weights).mean().item() == pytest.approx(value, abs=0.03)
    assert off_policy.snips(rewards, weights).item() == pytest.approx(value, abs=0.03)
    wrong_model = torch.full((40_000,), 0.4)
    assert off_policy.doubly_robust(
        rewards, weights, wrong_model, wrong_model
    ).mean().item() == pytest.approx(value, abs=0.03)
    model = truth[arms]  # a right model is right even with wrong weights
    doubly = off_policy.doubly_robust(rewards, 0.5 * weights, model, torch.full((40_000,), value))
    assert doubly.mean().item() == pytest.approx(value, abs=0.03)
    low, high = off_policy.bootstrap_interval(off_policy.ips(rewards, weights), draws=200)
    assert low < off_policy.ips(rewards, weights).mean() < high and high - low < 0.1
