"""AdaReasoner by hand: what one pull changes, in a softmax policy and in a linear bandit."""

from __future__ import annotations

import torch

from lib.bandit.learner import boltzmann_probabilities
from lib.studies.off_policy import importance_weights, ips
from lib.studies.rivals import LinearBandit


def change(logits: torch.Tensor, arm: int, advantage: float, tau: float) -> torch.Tensor:
    """What REINFORCE adds to the logits (K,) of one head at a rate of 1, after one decision: (K,)."""
    drawn = torch.eye(len(logits), dtype=logits.dtype)[arm]
    return advantage * (drawn - boltzmann_probabilities(logits, tau)) / tau


def learn(
    inverse: torch.Tensor, targets: torch.Tensor, x: torch.Tensor, reward: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """What an arm of a linear bandit knows after one more reward: inverse matrix (D, D), and targets (D,)."""
    arm = LinearBandit(len(x), 1, rule="lin_ts", exploration=0.0)
    arm.inverse, arm.targets = inverse.clone()[None], targets.clone()[None]
    arm.learn(x[None], torch.tensor([0]), torch.tensor([reward]))
    return arm.inverse[0], arm.targets[0]


def logged_value(rewards: torch.Tensor, target: torch.Tensor, propensities: torch.Tensor) -> torch.Tensor:
    """What another policy would have earned: inverse propensity scores of a log (N,), their mean."""
    return ips(rewards, importance_weights(target, propensities)).mean()
