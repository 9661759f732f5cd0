"""A surface whose best action is known, of any size: our rule and the released one in the paper's space.

python -m lib.studies.simulated_surface              10 surfaces of each size, to 06_simulated_surface
python -m lib.studies.simulated_surface --trials     how our setting was chosen, on other surfaces
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from lib.bandit.actions import ActionSpace
from lib.bandit.environments import Environment
from lib.bandit.learner import ConfigurationPolicy, choose
from lib.bandit.training import BanditConfig, BanditTrainer
from lib.dial.surface import Surface
from lib.runs import ROOT, provenance, write_json
from lib.studies.bandits import RELEASED, SPACE
from lib.studies.paired import seed_interval
from lib.studies.rivals import regret

SURFACE_RUNS = ROOT / "data" / "reference_runs" / "06_simulated_surface"


def simulated_surface(
    action_space: ActionSpace, *, questions: int = 100, kinds: int = 4, noise: float = 0.1, seed: int = 0
) -> tuple[torch.Tensor, Surface]:
    """Embeddings (N, 16) of questions of several kinds, and a surface with one best action for each kind.

    The reward is a product of three parts, each 1 at the best value of its head. Instructions are worth 0.2
    to 0.8 at random; temperature and steps fall off with their distance, to 0.37 after a third of the range.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = list(action_space.sizes.values())
    best = torch.stack([torch.randint(size, (kinds,), generator=generator) for size in sizes])
    parts = [0.2 + 0.6 * torch.rand(kinds, sizes[0], generator=generator)]
    parts[0][torch.arange(kinds), best[0]] = 1.0
    for size, centre in zip(sizes[1:], best[1:], strict=True):
        distance = (torch.arange(size) - centre[:, None]) / max(1.0, size / 3)
        parts.append(torch.exp(-(distance**2)))
    values = torch.einsum("ki,kt,ks->kits", *parts).flatten(1)
    contexts = torch.arange(questions) % kinds
    directions = torch.randn(kinds, 16, generator=generator)
    embeddings = directions[contexts] + noise * torch.randn(questions, 16, generator=generator)
    return torch.nn.functional.normalize(embeddings, dim=-1), Surface(values, contexts)


SURFACE_RULES: dict[str, dict[str, Any]] = {
    "ours": {"batch_size": 64},  # chosen by SURFACE_TRIALS
    "ours_32_answers": {"batch_size": 32},
    "ours_128_answers": {"batch_size": 128},
    # ten times the code's learning rate, so that 400 updates show what the rule does
    "released": RELEASED | {"learning_rate": 0.01, "batch_size": 64},
    "released_sign_mended": RELEASED
    | {"learning_rate": 0.01, "batch_size": 64, "update": "released_flipped"},
}

SURFACE_TRIALS: dict[str, dict[str, Any]] = {
    "32 answers": {"batch_size": 32},
    "64 answers": {"batch_size": 64},
    "128 answers": {"batch_size": 128},
    "32, half the rate": {"learning_rate": 2.5e-3},
    "32, twice the rate": {"learning_rate": 1e-2},
    "32, no annealing": {"schedule": "constant"},
    "32, half the bonus": {"entropy_bonus": 0.025},
    "32, twice the bonus": {"entropy_bonus": 0.1},
    "32, z-score": {"baseline": "zscore"},
}


def surface_shares(seed: int, space: ActionSpace = SPACE) -> dict[str, dict[str, float]]:
    """Expected reward as a share of the best possible, after 400 updates from 100 questions, for each rule.

    Ours learns from draws of 0 and 1. The released code's rewards are probabilities, so its rules get the
    expected rewards; and it samples at test time too. Regret is expected regret, in the first and in the
    second half of training.
    """
    embeddings, surface = simulated_surface(space, seed=seed)
    index = torch.arange(len(embeddings))
    best = surface.optimal(index).mean()
    found = {"random": {"share": (surface.values[surface.contexts].mean() / best).item()}}
    for name, changes in SURFACE_RULES.items():
        released = name.startswith("released")
        rewards = (lambda q, a, seed: surface.expected(q, a)) if released else surface
        trainer = _train_on_surface(space, embeddings, rewards, seed, changes)
        tau = trainer.config.temperature(trainer.step) if released else None
        actions = choose(trainer.policy, embeddings, temperature=tau, seed=seed).actions
        logged = [torch.tensor([d[key] for d in trainer.decisions]) for key in ("question", "action")]
        regrets = regret(surface, *logged)
        half = regrets[len(regrets) // 2].item()
        found[name] = {
            "share": (surface.expected(index, actions).mean() / best).item(),
            "regret_first_half": half,
            "regret_second_half": regrets[-1].item() - half,
        }
    return found


def _train_on_surface(
    space: ActionSpace, embeddings: torch.Tensor, rewards: Environment, seed: int, changes: dict[str, Any]
) -> BanditTrainer:
    """A fresh policy after its 400 updates."""
    torch.manual_seed(seed)
    policy = ConfigurationPolicy(embeddings.shape[1], space)
    trainer = BanditTrainer(policy, embeddings, rewards, BanditConfig(seed=seed, **changes))
    trainer.train()
    return trainer


def surface_trials(seeds: Sequence[int] = range(1000, 1030)) -> dict[str, dict[str, float]]:
    """How SURFACE_TRIALS end on surfaces of the paper's size that are not reported: mean and least share."""
    space, found = ActionSpace.paper(), {}
    for name, changes in SURFACE_TRIALS.items():
        shares = []
        for seed in seeds:
            embeddings, surface = simulated_surface(space, seed=seed)
            index = torch.arange(len(embeddings))
            trainer = _train_on_surface(space, embeddings, surface, seed, changes)
            reward = surface.expected(index, choose(trainer.policy, embeddings).actions).mean()
            shares.append((reward / surface.optimal(index).mean()).item())
        mean, low, high = seed_interval(shares)
        found[name] = {"share": mean, "low": low, "high": high, "least": min(shares)}
        print(f"{name:24} {mean:.3f} [{low:.3f}, {high:.3f}]", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", action="store_true", help="only how the setting was chosen")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.trials:
        write_json(SURFACE_RUNS / "trials" / "summary.json", surface_trials())
        facts = provenance(
            command="python -m lib.studies.simulated_surface --trials", surfaces="1000 to 1029"
        )
        write_json(SURFACE_RUNS / "trials" / "provenance.json", facts)
        return
    for seed in range(given.seeds):
        for name, space in {"dial": SPACE, "paper": ActionSpace.paper()}.items():
            folder = SURFACE_RUNS / name / f"seed_{seed}"
            if not (folder / "provenance.json").exists():
                write_json(folder / "summary.json", surface_shares(seed, space))
                facts = provenance(command="python -m lib.studies.simulated_surface", seed=seed)
                write_json(folder / "provenance.json", facts)


if __name__ == "__main__":
    main()
