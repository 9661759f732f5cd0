"""The learners that a configuration policy has to beat: fixed, random, and linear bandits.

A linear bandit keeps a ridge regression of the reward on the embedding for every arm. An arm is a whole
action (joint), or a value of one head (factorised: three small bandits that learn from the same reward).
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch

from lib.bandit.actions import ActionSpace
from lib.bandit.environments import Environment
from lib.checked import Range, faults, raise_faults
from lib.dial.surface import Surface

Rule = Literal["epsilon_greedy", "lin_ucb", "lin_ts"]
MAX_CELLS = 2**28  # of the matrices of all arms, about 1 GB


class LinearBandit:
    """Ridge regression per arm on contexts (B, D); `rule` says how to explore.

    epsilon_greedy: a random arm with probability `exploration`. lin_ucb: the estimate and `exploration` times
    its width (Li et al. 2010, algorithm 1). lin_ts: the estimate by weights drawn from the posterior, with
    standard deviation `exploration` (Agrawal and Goyal 2013).
    """

    def __init__(self, dim: int, arms: int, *, rule: Rule, exploration: float, ridge: float = 1.0):
        raise_faults(faults("LinearBandit: rule", Rule, rule))
        raise_faults(faults("LinearBandit: exploration", Annotated[float, Range(0)], exploration))
        if arms * dim**2 > MAX_CELLS:
            raise ValueError(
                f"{arms} arms with {dim} features need {4 * arms * dim**2 / 2**30:.0f} GB: "
                "use factorised arms, or embeddings of a smaller dimension"
            )
        self.rule, self.exploration = rule, exploration
        self.inverse = torch.eye(dim).repeat(arms, 1, 1) / ridge  # (A, D, D)
        self.targets = torch.zeros(arms, dim)

    def scores(self, contexts: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """What the rule ranks arms by, (B, A); without a generator the plain estimates."""
        weights = torch.einsum("ade,ae->ad", self.inverse, self.targets)
        estimates = contexts @ weights.T
        if generator is None:
            return estimates
        if self.rule == "epsilon_greedy":
            noise = torch.rand(estimates.shape, generator=generator)
            explores = torch.rand(len(contexts), 1, generator=generator) < self.exploration
            return torch.where(explores, noise, estimates)
        widths = torch.einsum("bd,ade,be->ba", contexts, self.inverse, contexts).clamp_min(0).sqrt()
        if self.rule == "lin_ucb":
            return estimates + self.exploration * widths
        # x'w for w ~ N(mean, inverse) is normal with this width: the arms' draws are independent.
        return estimates + self.exploration * widths * torch.randn(estimates.shape, generator=generator)

    def learn(self, contexts: torch.Tensor, arms: torch.Tensor, rewards: torch.Tensor) -> None:
        """Add observations (B, D), (B,), (B,), one by one (Sherman-Morrison)."""
        for x, arm, reward in zip(contexts, arms.tolist(), rewards.tolist(), strict=True):
            v = self.inverse[arm] @ x
            self.inverse[arm] -= torch.outer(v, v) / (1 + x @ v)
            self.targets[arm] += reward * x


class ConfigurationBandit:
    """A linear bandit over configurations, joint or factorised, with the environment loop around it."""

    def __init__(
        self,
        dim: int,
        space: ActionSpace,
        *,
        rule: Rule,
        exploration: float,
        factorised: bool = False,
        ridge: float = 1.0,
    ):
        if factorised and rule == "lin_ucb":
            raise ValueError(
                "lin_ucb draws nothing, so its heads move in lockstep and most combinations are never tried: "
                "factorise lin_ts or epsilon_greedy"
            )
        sizes = space.sizes if factorised else {"joint": space.size}
        self.space = space
        self.bandits = {
            name: LinearBandit(dim + 1, size, rule=rule, exploration=exploration, ridge=ridge)
            for name, size in sizes.items()
        }

    def choose(self, embeddings: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Actions for embeddings (B, D); without a generator nothing is explored."""
        contexts = _with_one(embeddings)
        arms = {name: bandit.scores(contexts, generator).argmax(-1) for name, bandit in self.bandits.items()}
        return arms["joint"] if "joint" in arms else self.space.join(arms)

    def train(
        self,
        embeddings: torch.Tensor,
        environment: Environment,
        *,
        updates: int,
        batch_size: int,
        seed: int,
    ) -> list[dict[str, Any]]:
        """The loop of `BanditTrainer`, on the same questions for the same seed; gives a row per update."""
        history = []
        for step in range(updates):
            step_seed = seed * 1_000_003 + step
            generator = torch.Generator().manual_seed(step_seed)
            questions = torch.randint(len(embeddings), (batch_size,), generator=generator)
            actions = self.choose(embeddings[questions], generator)
            rewards = environment(questions, actions, step_seed)
            answered = ~rewards.isnan()
            arms = {"joint": actions} if "joint" in self.bandits else self.space.split(actions)
            for name, bandit in self.bandits.items():
                contexts = _with_one(embeddings[questions][answered])
                bandit.learn(contexts, arms[name][answered], rewards[answered])
            history.append({"step": step + 1, "questions": questions, "actions": actions, "rewards": rewards})
        return history


def _with_one(embeddings: torch.Tensor) -> torch.Tensor:
    return torch.cat([embeddings, torch.ones(len(embeddings), 1)], dim=-1)


def best_fixed(
    space_size: int,
    environment: Environment,
    *,
    questions: int,
    requests: int,
    seed: int,
    start: int | None = None,
    keep: float = 0.5,
) -> tuple[int, torch.Tensor]:
    """The one action with the best mean reward on the training questions, found with a budget of requests.

    Successive halving: `start` actions drawn at random (None: all) are tried equally often, then the better
    ones again (the share `keep`), until one is left or the budget is spent. Gives the action and the mean
    rewards (size,) of what was tried, NaN where nothing was answered.
    """
    generator = torch.Generator().manual_seed(seed)
    left = torch.arange(space_size)
    if start is not None:
        left = torch.randperm(space_size, generator=generator)[:start]
    sums, counts = torch.zeros(space_size), torch.zeros(space_size)
    rounds = max(1, math.ceil(math.log(len(left), 1 / keep)))
    spent = 0
    for number in range(rounds):
        each = max(1, requests // rounds // len(left))
        actions = left.repeat_interleave(each)
        if spent + len(actions) > requests:
            break
        spent += len(actions)
        asked = torch.randint(questions, (len(actions),), generator=generator)
        rewards = environment(asked, actions, seed * 1_000_003 + number)
        answered = ~rewards.isnan()
        sums.index_add_(0, actions[answered], rewards[answered])
        counts.index_add_(0, actions[answered], torch.ones(int(answered.sum())))
        means = sums / counts
        order = means[left].nan_to_num(-1).argsort(descending=True)
        left = left[order[: max(1, int(len(left) * keep))]]
    if not spent:
        raise ValueError(f"{requests} requests cannot try {len(left)} actions; give a smaller start")
    return int(left[0]), means


def random_actions(count: int, size: int, seed: int) -> torch.Tensor:
    """Uniformly random actions, (count,)."""
    return torch.randint(size, (count,), generator=torch.Generator().manual_seed(seed))


def regret(environment: Surface, questions: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """Cumulative expected regret over decisions in their order, (N,), on a surface that knows the optimum."""
    return (environment.optimal(questions) - environment.expected(questions, actions)).cumsum(0)


def regret_bound(steps: int, actions: int) -> float:
    """The paper's bound without its constant: sqrt(K |A| ln |A|), for rewards in [0, 1] (appendix B)."""
    return math.sqrt(steps * actions * math.log(actions))
