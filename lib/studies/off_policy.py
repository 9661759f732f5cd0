"""What would another policy have earned? Estimates from logged decisions and their propensities.

rewards, propensities (of the logged action under the logging policy) and target (its probability under the
policy to judge) are (N,). Weights w = target / propensity are exact where every action had a chance.
"""

from __future__ import annotations

import torch

from lib.bandit.actions import HEADS
from lib.bandit.learner import ConfigurationPolicy, boltzmann_probabilities


@torch.no_grad()
def action_probabilities(
    policy: ConfigurationPolicy, embeddings: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """The probability of every action, (B, size); for spaces that fit into memory."""
    probs = {
        head: boltzmann_probabilities(logits, temperature) for head, logits in policy(embeddings).items()
    }
    if "joint" in probs:
        return probs["joint"]
    joint = torch.einsum("bi,bt,bs->bits", *(probs[head] for head in HEADS))
    return joint.flatten(1)


def importance_weights(target: torch.Tensor, propensities: torch.Tensor) -> torch.Tensor:
    """w = pi(a) / mu(a), (N,)."""
    if (propensities <= 0).any():
        raise ValueError("propensities must be above 0: a logged action had a chance")
    return target / propensities


def ips(rewards: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Inverse propensity scoring, per decision (N,): its mean is unbiased, and its variance may be huge."""
    return weights * rewards


def snips(rewards: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Self-normalised IPS (Swaminathan and Joachims 2015): divides by the sum of the weights; a scalar."""
    return (weights * rewards).sum() / weights.sum()


def doubly_robust(
    rewards: torch.Tensor, weights: torch.Tensor, predicted: torch.Tensor, predicted_value: torch.Tensor
) -> torch.Tensor:
    """Doubly robust (Dudik et al. 2011), per decision (N,).

    predicted: the reward model at the logged action; predicted_value: its mean under the policy to judge.
    Right on average if either the propensities or the model are.
    """
    return predicted_value + weights * (rewards - predicted)


def effective_sample_size(weights: torch.Tensor) -> float:
    """(sum w)^2 / sum w^2: how many decisions the estimate really rests on."""
    return (weights.sum() ** 2 / (weights**2).sum()).item()


def bootstrap_interval(
    values: torch.Tensor, weights: torch.Tensor | None = None, *, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """The 95 % percentile interval of a mean, or of a weighted mean for SNIPS, over resampled decisions."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(values), (draws, len(values)), generator=generator)
    if weights is None:
        means = values[rows].mean(1)
    else:
        means = (values * weights)[rows].sum(1) / weights[rows].sum(1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975]))
    return low.item(), high.item()
