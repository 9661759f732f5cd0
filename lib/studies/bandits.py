"""AdaReasoner's policy and its rivals on the dial LLM: one method, one seed, one summary.

python -m lib.studies.bandits                    every method, 10 seeds, to data/reference_runs/06_adareasoner
python -m lib.studies.bandits learned --seeds 2

The rewards are drawn from the shipped table of p(correct), so the expected reward of every choice is known.
Training questions are of the validation split, test questions of the test split; the frozen LLM learnt from
neither. The settings were chosen on other draws of questions. All methods that learn get the same number of
answers.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch

from lib.bandit.actions import HEADS
from lib.bandit.learner import ConfigurationPolicy, choose
from lib.bandit.training import BanditConfig, BanditTrainer
from lib.dial import frozen_llm
from lib.dial.surface import Surface
from lib.dial.world import Question
from lib.measure.intervals import mean_interval
from lib.policies.load import load_policy
from lib.runs import ROOT, provenance, write_json
from lib.studies.rivals import ConfigurationBandit, best_fixed, random_actions
from lib.studies.shared import decision_states

RUNS = ROOT / "data" / "reference_runs" / "06_adareasoner"
TRAIN, TEST = 200, 900  # questions; the paper has 100 for training
NEW_DRAWS = 1000  # added to the seed of a draw of questions: settings were tried on draws 0 to 9
NORM = 5.0  # length of an embedding: shorter ones learn too slowly, longer ones settle too early
NEUTRAL = ("think", 3)  # the configuration in which a question is embedded
SHOTS = (25, 50, 100, 400)  # beside the 200 of "learned"
SPACE = frozen_llm.action_space()
DEFAULTS = BanditConfig(updates=600, batch_size=128, learning_rate=2e-3, decay=0.998)


Embed = Callable[[Sequence[Question]], torch.Tensor]  # questions -> (N, D)


@dataclass(frozen=True)
class QuestionSet:
    """Questions as embeddings, with the surface that answers them and the tokens (C, A) that answers cost."""

    questions: list[Question]
    embeddings: torch.Tensor
    surface: Surface
    tokens: torch.Tensor

    @property
    def all(self) -> torch.Tensor:
        return torch.arange(len(self.questions))


@cache
def dial_llm() -> tuple[Any, Any]:
    """The shipped dial LLM and its tokenizer, loaded once."""
    return load_policy("dial-llm")


def embed(questions: Sequence[Question]) -> torch.Tensor:
    """The frozen LLM's own state where it begins to respond, when asked in one neutral way: (N, 96)."""
    return decision_states(*dial_llm(), [frozen_llm.prompt(question, *NEUTRAL) for question in questions])


@lru_cache(maxsize=16)
def question_sets(seed: int, *, shots: int = TRAIN, tests: int = TEST) -> tuple[QuestionSet, QuestionSet]:
    """Training and test questions; embeddings are standardised by the training questions."""
    return standardised(
        frozen_llm.sample_mixture_questions(shots, seed=NEW_DRAWS + seed, split="validation"),
        frozen_llm.sample_mixture_questions(tests, seed=NEW_DRAWS + seed, split="test"),
    )


def standardised(
    train: list[Question], test: list[Question], *, embedder: Embed = embed, tables: Sequence[Path] = ()
) -> tuple[QuestionSet, QuestionSet]:
    """Question sets with their embeddings standardised by the training questions, and rewards from `tables`.

    The tables are for training and for test questions; none: the shipped LLM's for both.
    """
    embeddings = [embedder(questions) for questions in (train, test)]
    mean, deviation = embeddings[0].mean(0), embeddings[0].std(0).clamp_min(1e-6)
    made = []
    places = tables or (frozen_llm.TABLE,) * 2
    for questions, vectors, table in zip((train, test), embeddings, places, strict=True):
        surface, tokens = frozen_llm.dial_surface(questions, table)
        scaled = (vectors - mean) / deviation * (NORM / vectors.shape[1] ** 0.5)
        made.append(QuestionSet(questions, scaled, surface, tokens))
    return made[0], made[1]


# ---- methods -----------------------------------------------------------------------------------

PAPER = {
    "optimizer": "sgd",
    "learning_rate": 0.01,
    "baseline": "none",
    "gradient_at": "one",
    "entropy_bonus": 0.0,
}
RELEASED = {
    "update": "released",
    "optimizer": "sgd",
    "learning_rate": 0.001,
    "baseline": "zscore",
    "window": 100,
    "schedule": "linear",
}
# name: changes of the configuration, changes of the policy
LEARNERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "learned": ({}, {}),
    "joint": ({}, {"joint": True}),
    "paper": (PAPER, {"head_layers": 3}),
    "released": (RELEASED, {}),
    "released_sign_mended": (RELEASED | {"update": "released_flipped"}, {}),
    "three_layers": ({}, {"head_layers": 3}),
    "no_trunk_shared": ({}, {"shared": False}),
    "no_annealing": ({"schedule": "constant"}, {}),
    "no_entropy_bonus": ({"entropy_bonus": 0.0}, {}),
    "no_baseline": ({"baseline": "none"}, {}),
    "mean_baseline": ({"baseline": "mean"}, {}),
    "zscore": ({"baseline": "zscore"}, {}),
    "shifted_no_baseline": ({"baseline": "none", "reward_shift": -0.5}, {}),
    "gradient_at_one": ({"gradient_at": "one"}, {}),
    **{f"only_{head}": ({"heads": (head,)}, {}) for head in HEADS},
    **{f"without_{head}": ({"heads": tuple(h for h in HEADS if h != head)}, {}) for head in HEADS},
}
LINEAR: dict[str, dict[str, Any]] = {
    "epsilon_greedy": {"rule": "epsilon_greedy", "exploration": 0.1},
    "lin_ucb": {"rule": "lin_ucb", "exploration": 0.5},
    "lin_ts": {"rule": "lin_ts", "exploration": 0.3},
    "lin_ts_factorised": {"rule": "lin_ts", "exploration": 0.3, "factorised": True},
}
FIXED = ("random", "best_fixed", "best_fixed_known", "oracle")
METHODS = (*FIXED, *LINEAR, *LEARNERS, *(f"shots_{shots}" for shots in SHOTS))


def make_policy(dim: int, seed: int, *, width: int = 128, **options: Any) -> ConfigurationPolicy:
    """A fresh policy for the dial space."""
    torch.manual_seed(seed)
    return ConfigurationPolicy(dim, SPACE, width=width, **options)


def train_policy(name: str, train: QuestionSet, seed: int, config: BanditConfig) -> BanditTrainer:
    """Train one of LEARNERS on the table."""
    changes, shape = LEARNERS["learned" if name.startswith("shots_") else name]
    policy = make_policy(train.embeddings.shape[1], seed, **shape)
    trainer = BanditTrainer(policy, train.embeddings, train.surface, replace(config, seed=seed, **changes))
    trainer.train()
    return trainer


def actions_of(
    name: str, train: QuestionSet, test: QuestionSet, seed: int, config: BanditConfig
) -> tuple[torch.Tensor, list[dict[str, float]]]:
    """What a method does on the test questions, (N,), and the rows of its training."""
    if name == "random":
        return random_actions(len(test.questions), SPACE.size, seed), []
    if name == "oracle":
        return test.surface.values[test.surface.contexts].argmax(-1), []
    if name == "best_fixed_known":  # the best that any fixed action can do on these very questions
        best = test.surface.values[test.surface.contexts].mean(0).argmax()
        return best.expand(len(test.questions)), []
    requests = config.updates * config.batch_size
    if name == "best_fixed":
        action, _ = best_fixed(
            SPACE.size, train.surface, questions=len(train.questions), requests=requests, seed=seed
        )
        return torch.full((len(test.questions),), action), []
    if name in LINEAR:
        bandit = ConfigurationBandit(train.embeddings.shape[1], SPACE, **LINEAR[name])
        rows = bandit.train(
            train.embeddings / NORM,
            train.surface,
            updates=config.updates,
            batch_size=config.batch_size,
            seed=seed,
        )
        history = [{"step": row["step"], "reward": row["rewards"].mean().item()} for row in rows]
        return bandit.choose(test.embeddings / NORM), history
    trainer = train_policy(name, train, seed, config)
    if name.startswith("released"):  # its test script samples too
        tau = trainer.config.temperature(trainer.step)
        return choose(trainer.policy, test.embeddings, temperature=tau, seed=seed).actions, trainer.history
    chosen = choose(trainer.policy, test.embeddings, heads=trainer.config.heads, seed=seed)
    return chosen.actions, trainer.history


def summary_of(name: str, test: QuestionSet, actions: torch.Tensor) -> dict[str, Any]:
    """The summary of a method: expected reward with its 95 % interval over questions, and tokens."""
    rewards = test.surface.expected(test.all, actions)
    low, high = mean_interval(rewards.tolist())
    tokens = test.tokens[test.surface.contexts, actions]
    row = {
        "reward": round(rewards.mean().item(), 4),
        "reward_ci": [round(float(low), 4), round(float(high), 4)],
        "mean_tokens": round(tokens.mean().item(), 2),
    }
    optimal = round(test.surface.optimal(test.all).mean().item(), 4)
    return {"policies": {name: row}, "optimal_reward": optimal}


def run_method(name: str, seed: int, config: BanditConfig = DEFAULTS) -> dict[str, Any]:
    """Train and judge one method with one seed."""
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; there are {', '.join(METHODS)}")
    shots = int(name.removeprefix("shots_")) if name.startswith("shots_") else TRAIN
    train, test = question_sets(seed, shots=shots)
    actions, history = actions_of(name, train, test, seed, config)
    every = [row["reward"] for row in history]
    curve = [round(sum(every[i : i + 20]) / len(every[i : i + 20]), 4) for i in range(0, len(every), 20)]
    return summary_of(name, test, actions) | {"training_reward": curve}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", default=METHODS)
    parser.add_argument("--seeds", type=int, default=10)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for seed in range(given.seeds):
        for name in given.methods:
            folder = RUNS / name / f"seed_{seed}"
            if (folder / "provenance.json").exists():
                continue
            summary = run_method(name, seed)
            write_json(folder / "summary.json", summary)
            command = f"python -m lib.studies.bandits {name}"
            write_json(folder / "provenance.json", provenance(command=command, seed=seed))
            print(f"seed {seed}  {name:22} {summary['policies'][name]['reward']:.4f}", flush=True)


if __name__ == "__main__":
    main()
