"""Formulas and networks of AdaReasoner: softmax heads, Boltzmann exploration, REINFORCE."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, NamedTuple

import torch
from torch import nn

from lib.bandit.actions import HEADS, ActionSpace
from lib.checked import Range, faults, raise_faults

PerHead = Mapping[str, torch.Tensor]  # logits (B, K) or actions (B,), by the name of the head

# ---- formulas ----------------------------------------------------------------------------------


def boltzmann_probabilities(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """softmax(logits / tau) over the last dimension (paper, eq. 3); the exploration temperature tau > 0."""
    if not temperature > 0:
        raise ValueError(f"the exploration temperature must be above 0, got {temperature}")
    return torch.softmax(logits / temperature, dim=-1)


def annealed_temperature(step: int, initial: float, decay: float) -> float:
    """tau_0 * alpha^t (paper, eq. 3); the paper gives no values for tau_0 and alpha."""
    return initial * decay**step


def linear_temperature(step: int, initial: float = 1.0) -> float:
    """The schedule of the released code; it counts questions, so 100 of them leave tau at 0.99."""
    return max(initial - 1e-4 * step, 0.1)


def _chosen(values: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """The value of the action taken in each row: (B, K), (B,) -> (B,)."""
    return values.gather(-1, actions[:, None])[:, 0]


def log_probability(logits: PerHead, actions: PerHead, temperature: float = 1.0) -> torch.Tensor:
    """log Pi(a): (B, K) and (B,) per head -> (B,); the heads choose apart, so their logs add (eq. 2)."""
    parts = [_chosen((logits[head] / temperature).log_softmax(-1), actions[head]) for head in logits]
    return torch.stack(parts).sum(0)


def reinforce_loss(
    logits: PerHead,
    actions: PerHead,
    rewards: torch.Tensor,
    *,
    temperature: float = 1.0,
    baseline: float | torch.Tensor | None = None,
) -> torch.Tensor:
    """-(r - b) log pi(a), summed over heads, mean over the batch (paper, eq. 4).

    logits: (B, K) per head; actions: (B,) per head; rewards: (B,); baseline: none, a number, or (B,).
    `temperature` is that of the log-probabilities. The unbiased gradient is at the temperature of sampling;
    the paper samples at tau and differentiates at 1.
    """
    advantages = (rewards if baseline is None else rewards - baseline).detach()
    return -(advantages * log_probability(logits, actions, temperature)).mean()


def zscores(rewards: torch.Tensor, before: torch.Tensor, window: int) -> torch.Tensor:
    """Rewards (B,) as z-scores among the last `window` rewards up to their own, after those of `before` (N,).

    As in the released code: the deviation is the population's, and the present reward belongs to its window.
    So |z| is at most sqrt(window - 1), 9.95 for a window of 100, and 0 where all rewards are equal.
    """
    padded = torch.cat([torch.full((window,), math.nan), before, rewards])[-(window + len(rewards) - 1) :]
    windows = padded.double().unfold(0, window, 1)  # in single precision the mean of equal rewards is rounded
    centred = windows - windows.nanmean(1, keepdim=True)
    return (centred[:, -1] / (centred.square().nanmean(1).sqrt() + 1e-8)).to(rewards.dtype)


def released_loss(
    logits: PerHead, actions: PerHead, rewards: torch.Tensor, *, temperature: float = 1.0
) -> torch.Tensor:
    """A loss whose descent is the update of the released code: z / p(a) on the chosen logit alone.

    The code adds -lr * z / p(a) to the chosen logit, z the normalised reward and p taken at the temperature
    of sampling: a good reward pushes its own action down. The -p terms of the other logits and 1 / tau are
    missing.
    """
    terms = []
    for head in logits:
        probs = _chosen(boltzmann_probabilities(logits[head], temperature), actions[head]).detach()
        terms.append(rewards * _chosen(logits[head], actions[head]) / (probs + 1e-8))
    return sum(terms, start=torch.zeros(())).mean()


def entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """The entropy of each row in nats: (B, K) -> (B,); in single precision at least: 1e-12 is 0 in half."""
    wide = probabilities.to(torch.promote_types(probabilities.dtype, torch.float32))
    return -(wide * wide.clamp_min(1e-12).log()).sum(-1)


# ---- the policy --------------------------------------------------------------------------------


Count = Annotated[int, Range(1)]


class ConfigurationPolicy(nn.Module):
    """A shared trunk and a head of `head_layers` linear layers for each part of the configuration (eq. 2).

    The paper has three layers in a head and names no widths. The released code has one, and so have we: with
    three, some seeds settled early on a poor action. With `shared=False` each head has a trunk of its own.
    With `joint=True` there is one head over all actions: nothing is shared between similar ones.
    """

    def __init__(
        self,
        embedding_dim: Count,
        action_space: ActionSpace,
        *,
        width: Count = 64,
        head_layers: Count = 1,
        shared: bool = True,
        joint: bool = False,
    ):
        super().__init__()
        given = {"embedding_dim": embedding_dim, "width": width, "head_layers": head_layers}
        raise_faults(fault for name, value in given.items() for fault in faults(name, Count, value))
        self.action_space = action_space
        sizes = {"joint": action_space.size} if joint else action_space.sizes
        trunks = 1 if shared else len(sizes)
        self.trunks = nn.ModuleList(
            nn.Sequential(nn.Linear(embedding_dim, width), nn.Tanh()) for _ in range(trunks)
        )
        self.heads = nn.ModuleDict({name: _head(width, size, head_layers) for name, size in sizes.items()})

    def forward(self, embeddings: torch.Tensor) -> dict[str, torch.Tensor]:
        """Embeddings (B, D) -> logits (B, K) of each head; a joint head is named "joint"."""
        states = [trunk(embeddings) for trunk in self.trunks]
        return {
            name: head(states[min(index, len(states) - 1)])
            for index, (name, head) in enumerate(self.heads.items())
        }


def _head(width: int, size: int, layers: int) -> nn.Sequential:
    """Linear layers with ReLU in between; the last starts at zero, so that every action is equally likely."""
    hidden = [part for _ in range(layers - 1) for part in (nn.Linear(width, width), nn.ReLU())]
    last = nn.Linear(width, size)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*hidden, last)


class Decisions(NamedTuple):
    """Sampled configurations: per head (B,), their probabilities per head (B,), and the action index (B,)."""

    choices: dict[str, torch.Tensor]
    propensities: dict[str, torch.Tensor]
    actions: torch.Tensor

    @property
    def propensity(self) -> torch.Tensor:
        """The probability of the whole action: the product over the heads (eq. 2)."""
        return torch.stack(list(self.propensities.values())).prod(0)


@torch.no_grad()
def choose(
    policy: ConfigurationPolicy,
    embeddings: torch.Tensor,
    *,
    heads: Sequence[str] = HEADS,
    temperature: float | None = None,
    seed: int = 0,
) -> Decisions:
    """Choose for embeddings (B, D): sampled at the exploration temperature, or greedily where it is None.

    Heads that are not named choose uniformly at random (the ablations).
    """
    drawn, blind = (torch.Generator().manual_seed(seed + k) for k in (0, 1))
    choices, propensities = {}, {}
    for head, logits in policy(embeddings).items():
        if temperature is None:
            choices[head], propensities[head] = logits.argmax(-1), torch.ones(len(logits))
        else:
            probs = boltzmann_probabilities(logits, temperature)
            choices[head] = torch.multinomial(probs, 1, generator=drawn)[:, 0]
            propensities[head] = _chosen(probs, choices[head])
        if head not in (*heads, "joint"):
            size = logits.shape[-1]
            choices[head] = torch.randint(size, (len(logits),), generator=blind)
            propensities[head] = torch.full((len(logits),), 1 / size)
    actions = choices["joint"] if "joint" in choices else policy.action_space.join(choices)
    return Decisions(choices, propensities, actions)
