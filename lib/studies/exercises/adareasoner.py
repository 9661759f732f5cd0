"""Your turn in notebook 06: Boltzmann, one pull, heads, entropy, linear bandit, log; exercises 1 and 2."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from lib.bandit.learner import boltzmann_probabilities
from lib.bandit.learner import entropy as library_entropy
from lib.bandit.learner import log_probability as library_log_probability
from lib.studies import off_policy
from lib.studies import one_pull as library
from lib.studies.exercises.core import Check, by_hand

__all__ = [
    "boltzmann",
    "by_hand",
    "change",
    "entropy",
    "first_pull",
    "learn",
    "log_probability",
    "logged_value",
    "three_decisions",
]

Heads = Mapping[str, torch.Tensor]

# ---- Boltzmann exploration -----------------------------------------------------------------------

boltzmann = Check(
    "boltzmann",
    boltzmann_probabilities,
    lambda: [
        (torch.tensor([0.3, -0.2, 1.0]), 0.5),
        (torch.tensor([[1.0, 2.0], [0.5, 0.0]]), 2.0),
        (torch.tensor([[1.0, 0.0, 0.0]]), 1.0),
        (torch.tensor([200.0, 199.0]), 0.5),
    ],
    {
        "tau is not used.": lambda logits, tau: torch.softmax(logits, -1),
        "This multiplies by tau: a low tau would then explore more. Divide the logits by it.": (
            lambda logits, tau: torch.softmax(logits * tau, -1)
        ),
        "tau divides the logits, before the softmax; here the shares do not add up to 1.": (
            lambda logits, tau: torch.softmax(logits, -1) / tau
        ),
        "The softmax goes down the columns. Each row is a question, so sum over the last dimension.": (
            lambda logits, tau: torch.softmax(logits / tau, 0)
        ),
        "exp of a large logit is infinite. Take the largest away first, or let torch.softmax do it.": (
            lambda logits, tau: torch.exp(logits / tau) / torch.exp(logits / tau).sum(-1, keepdim=True)
        ),
        "These are log-probabilities.": lambda logits, tau: torch.log_softmax(logits / tau, -1),
        "The logits are divided by their sum. A softmax divides their exponentials.": (
            lambda logits, tau: logits / logits.sum(-1, keepdim=True)
        ),
    },
)

# ---- one pull ------------------------------------------------------------------------------------


def _drawn(logits: torch.Tensor, arm: int) -> torch.Tensor:
    return torch.eye(len(logits))[arm]


def _released(logits: torch.Tensor, arm: int, advantage: float, tau: float) -> torch.Tensor:
    return advantage * _drawn(logits, arm) / torch.softmax(logits / tau, -1)


change = Check(
    "change",
    library.change,
    lambda: [
        (torch.zeros(3), 2, 0.5, 1.0),
        (torch.tensor([0.3, -0.2, 1.0]), 1, 0.7, 0.5),
        (torch.tensor([0.0, 2.0]), 0, -0.4, 2.0),
    ],
    {
        "The sign: after a good reward the drawn arm goes up. This goes down the hill.": (
            lambda *given: -library.change(*given)
        ),
        "Only the drawn arm changes here. The others give up what it gains: take p away from all.": (
            lambda logits, arm, advantage, tau: advantage * _drawn(logits, arm) / tau
        ),
        "That is the chosen logit alone, divided by its probability: the released code's, sign mended.": (
            _released
        ),
        "1 / tau is missing: the logits stand in the softmax divided by tau.": (
            lambda logits, arm, advantage, tau: tau * library.change(logits, arm, advantage, tau)
        ),
        "The shares are taken at tau = 1, and the arm was drawn at tau.": (
            lambda logits, arm, advantage, tau: library.change(logits, arm, advantage, 1.0) / tau
        ),
        "That is the gradient at tau = 1, the paper's. The arm was drawn at tau.": (
            lambda logits, arm, advantage, tau: library.change(logits, arm, advantage, 1.0)
        ),
        "The advantage is not used: a bad reward must push the arm down.": (
            lambda logits, arm, advantage, tau: library.change(logits, arm, 1.0, tau)
        ),
    },
)

# ---- three heads ---------------------------------------------------------------------------------


def _per_head(logits: Heads, actions: Heads, tau: float) -> torch.Tensor:
    """The log-probability of each head's choice, (H, B)."""
    return torch.stack([library_log_probability({j: logits[j]}, actions, tau) for j in logits])


def _two_questions() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    logits = {"style": torch.tensor([[0.0, 1.0], [2.0, 0.0]]), "steps": torch.tensor([[1.0, 0.0, 0.5]] * 2)}
    return logits, {"style": torch.tensor([0, 1]), "steps": torch.tensor([2, 0])}


log_probability = Check(
    "log_probability",
    library_log_probability,
    lambda: [
        (*_two_questions(), 1.0),
        (*_two_questions(), 0.5),
        ({"only": torch.tensor([[0.0, 0.0]])}, {"only": torch.tensor([1])}, 2.0),
    ],
    {
        "That is the probability. Its log is wanted: it cannot underflow, and the product becomes a sum.": (
            lambda *given: library_log_probability(*given).exp()
        ),
        "That is the mean over heads. Independent choices multiply, so their logs add up.": (
            lambda *given: _per_head(*given).mean(0)
        ),
        "The probabilities are added. Independent choices multiply.": (
            lambda *given: _per_head(*given).exp().sum(0).log()
        ),
        "tau is not used.": lambda logits, actions, tau: library_log_probability(logits, actions, 1.0),
        "One head alone is in there.": lambda *given: _per_head(*given)[0],
        "That is the likeliest choice of each head. Take the one that was drawn, in `actions`.": (
            lambda logits, actions, tau: sum(
                (values / tau).log_softmax(-1).amax(-1) for values in logits.values()
            )
        ),
        "The chosen logits are added up as they are. A softmax makes them probabilities first.": (
            lambda logits, actions, tau: sum(
                logits[j].gather(-1, actions[j][:, None])[:, 0] / tau for j in logits
            )
        ),
    },
)

# ---- entropy -------------------------------------------------------------------------------------

entropy = Check(
    "entropy",
    library_entropy,
    lambda: [
        (torch.tensor([[0.25, 0.25, 0.25, 0.25]]),),
        (torch.tensor([[0.9, 0.1], [0.5, 0.5]]),),
        (torch.tensor([[1.0, 0.0, 0.0]]),),
    ],
    {
        "The sign: log p is negative, so the sum needs a minus.": lambda p: -library_entropy(p),
        "A probability of 0 gives 0 times minus infinity. Its part is 0: clamp p within the log.": (
            lambda p: -(p * p.log()).sum(-1)
        ),
        "That is in bits. Nats have the natural logarithm.": lambda p: (
            library_entropy(p) / torch.tensor(2.0).log()
        ),
        "That is one number for all. Each question, a row, has its own.": lambda p: library_entropy(p).mean(),
        "That is the mean over the values. It is their sum, weighted by p.": (
            lambda p: library_entropy(p) / p.shape[-1]
        ),
        "The log-probabilities are not weighted by p.": lambda p: -p.clamp_min(1e-12).log().sum(-1),
        "That is the share of the largest possible entropy.": (
            lambda p: library_entropy(p) / torch.tensor(float(p.shape[-1])).log()
        ),
    },
)

# ---- a linear bandit's arm -----------------------------------------------------------------------

Arm = tuple[torch.Tensor, torch.Tensor]


def _learn(inverse: torch.Tensor, targets: torch.Tensor, x: torch.Tensor, reward: float) -> Arm:
    return library.learn(inverse, targets, x, reward)


learn = Check(
    "learn",
    library.learn,
    lambda: [
        (torch.eye(2), torch.zeros(2), torch.tensor([1.0, 0.0]), 1.0),
        (torch.eye(2), torch.zeros(2), torch.tensor([1.0, 2.0]), 0.0),
        (torch.tensor([[0.5, 0.1], [0.1, 0.4]]), torch.tensor([1.0, -1.0]), torch.tensor([2.0, 1.0]), 0.5),
    ],
    {
        "That adds x x' to the inverse. It is added to the matrix itself, so the inverse shrinks.": (
            lambda inverse, targets, x, reward: (inverse + torch.outer(x, x), targets + reward * x)
        ),
        "The matrix itself comes back. Its inverse is wanted.": (
            lambda inverse, targets, x, reward: (
                torch.linalg.inv(inverse) + torch.outer(x, x),
                targets + reward * x,
            )
        ),
        "The reward is missing in the targets: they sum reward times x.": (
            lambda inverse, targets, x, reward: (_learn(inverse, targets, x, reward)[0], targets + x)
        ),
        "The targets stay as they were. They sum reward times x.": (
            lambda inverse, targets, x, reward: (_learn(inverse, targets, x, reward)[0], targets)
        ),
        "The 1 below the line is missing: divide by 1 + x' inverse x.": (
            lambda inverse, targets, x, reward: (
                inverse - torch.outer(inverse @ x, inverse @ x) / (x @ inverse @ x),
                targets + reward * x,
            )
        ),
        "The product is taken place by place. x x' is the outer product, a matrix.": (
            lambda inverse, targets, x, reward: (
                torch.linalg.inv(torch.linalg.inv(inverse) + torch.diag(x * x)),
                targets + reward * x,
            )
        ),
        "A reward of 0 is learnt from as well: it narrows what is known, though the targets stay.": (
            lambda inverse, targets, x, reward: (
                _learn(inverse, targets, x, reward) if reward else (inverse, targets)
            )
        ),
    },
)

# ---- what another policy would have earned -------------------------------------------------------

logged_value = Check(
    "logged_value",
    library.logged_value,
    lambda: [
        (torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0.5, 0.9, 0.1]), torch.tensor([0.25, 0.3, 0.5])),
        (torch.tensor([1.0, 1.0]), torch.tensor([0.2, 0.2]), torch.tensor([0.1, 0.8])),
        (torch.tensor([0.5, 1.0, 0.0, 0.0]), torch.full((4,), 0.5), torch.full((4,), 0.5)),
    ],
    {
        "The weight is upside down: the policy to judge, over the one that drew.": (
            lambda rewards, target, propensities: (rewards * propensities / target).mean()
        ),
        "That is what the logging policy earned. Weigh each decision.": lambda rewards, target, _: (
            rewards.mean()
        ),
        "That divides by the sum of the weights: SNIPS, the self-normalised estimate. Divide by N.": (
            lambda rewards, target, propensities: (
                (rewards * target / propensities).sum() / (target / propensities).sum()
            )
        ),
        "The chance to be drawn is not divided out: what was drawn often counts too often.": (
            lambda rewards, target, propensities: (rewards * target).mean()
        ),
        "That is the sum over decisions. The value is per decision.": (
            lambda rewards, target, propensities: (rewards * target / propensities).sum()
        ),
        "Decisions without a reward are left out of the mean. They count, with 0.": (
            lambda rewards, target, propensities: (rewards * target / propensities)[rewards > 0].mean()
        ),
        "The weights are cut at 1. That lowers the noise, and it is no longer right on average.": (
            lambda rewards, target, propensities: (rewards * (target / propensities).clamp_max(1)).mean()
        ),
    },
)

# ---- by hand: exercises 1 and 2 ------------------------------------------------------------------


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(value, 2) + 0.0 for value in values.flatten().tolist()]


def _pulled(rate: float = 0.5, advantage: float = 0.5) -> list[float]:
    step = rate * library.change(torch.zeros(3), 2, advantage, 1.0)
    return _rounded(torch.cat([step, step.sum()[None]]))


first_pull = Check(
    "first_pull",
    _pulled,
    lambda: [()],
    {
        "Two factors of 0.5 belong there: the step size, and the reward less what is usual.": (
            lambda: _pulled(rate=1.0)
        ),
        "The other arms change too: each gives up its probability's share.": lambda: [0.0, 0.0, 0.25, 0.25],
        "The pulled arm gives up its own share as well: 1 - 1/3.": lambda: [-0.08, -0.08, 0.25, 0.09],
        "The sign: the reward was better than usual, so the pulled arm goes up.": (
            lambda: [round(-value, 2) + 0.0 for value in _pulled()]
        ),
    },
)

LOG = torch.tensor([[1.0, 0.0, 1.0], [0.5, 0.9, 0.1], [0.25, 0.3, 0.5]])  # rewards, target, propensities


def _estimates(weights: torch.Tensor) -> list[float]:
    """IPS, SNIPS and the effective number of decisions."""
    size = off_policy.effective_sample_size(weights)
    return _rounded(
        torch.stack(
            [
                off_policy.ips(LOG[0], weights).mean(),
                off_policy.snips(LOG[0], weights),
                torch.tensor(size),
            ]
        )
    )


three_decisions = Check(
    "three_decisions",
    lambda: _estimates(LOG[1] / LOG[2]),
    lambda: [()],
    {
        "The weights are upside down.": lambda: _estimates(LOG[2] / LOG[1]),
        "These are the weights, 2 and 3 and 0.2. What do they make of the rewards?": (
            lambda: _rounded(LOG[1] / LOG[2])
        ),
        "IPS comes first, then SNIPS.": lambda: [_estimates(LOG[1] / LOG[2])[place] for place in (1, 0, 2)],
        "IPS is a mean over all three decisions, also over the one without a reward.": (
            lambda: [1.1, *_estimates(LOG[1] / LOG[2])[1:]]
        ),
    },
)
