"""Reward against the number of answers that were paid for: every learner at budgets from 50 to 76,800.

python -m lib.studies.bandit_budget tune lin_ts      six settings on validation draws, to 06_tuning
python -m lib.studies.bandit_budget run lin_ts       ten seeds with the settings chosen, to 06_budget

Every method is tuned alike: six settings, four draws of validation questions (which are asked about other
validation questions), for each of three ranges of budgets. Seeds have questions of their own (`NEW_DRAWS`).
The temperature of exploration ends at the budget: a training for each budget. `reinforce_<b>_anytime` is one
training to the largest budget, read along the way.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product
from typing import Any

import pandas as pd
import torch

from lib.bandit.training import BanditConfig
from lib.dial import frozen_llm
from lib.runs import ROOT, provenance, write_atomically, write_json
from lib.studies import bandit_stack, bandits, rivals
from lib.studies.bandit_posteriors import AnswerByAnswer, learning_curve
from lib.studies.bandits import PAPER, RELEASED, SPACE, QuestionSet

RUNS = ROOT / "data" / "reference_runs"
ANSWERS = (50, 100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 76_800)
RANGES = {"few": (100, 400), "some": (1_600, 3_200), "many": (12_800,)}  # of budgets, and where each is tuned
LAST_OF_RANGE = {"few": 400, "some": 6_400, "many": ANSWERS[-1]}
DRAWS, SEEDS = range(4), range(10)
FINAL_TEMPERATURE = 0.3  # of exploration, from 1
Sets = tuple[QuestionSet, QuestionSet]
Found = Iterator[tuple[int, int, float, float]]  # number of the run, answers, reward, tokens
Setting = dict[str, Any]

GRIDS: dict[str, list[Setting]] = {
    "reinforce": [
        {"learning_rate": rate, "entropy_bonus": bonus}
        for rate, bonus in product((1e-3, 3e-3, 1e-2), (0.02, 0.1))
    ],
    "linear": [
        {"exploration": width, "ridge": ridge} for width, ridge in product((0.05, 0.2, 0.6), (0.3, 3.0))
    ],
    "best_fixed": [{"start": start, "keep": keep} for start, keep in product((12, 36, 72), (0.5, 0.25))],
}
LINEAR: dict[str, Setting] = {
    "thompson": {"rule": "lin_ts", "factorised": False, "reads": False},
    "ucb": {"rule": "lin_ucb", "factorised": False, "reads": False},
    "lin_ts": {"rule": "lin_ts", "factorised": False, "reads": True},
    "lin_ucb": {"rule": "lin_ucb", "factorised": False, "reads": True},
    "lin_ts_factorised": {"rule": "lin_ts", "factorised": True, "reads": True},
    "lin_ucb_factorised": {"rule": "lin_ucb", "factorised": True, "reads": True},
}
BATCHES = {f"reinforce_{size}": size for size in (1, 4, 64, 128)}
TUNED = ("best_fixed", *LINEAR, *BATCHES)
# changes of BanditConfig, options of the stack; the papers' rules are not tuned
LITERAL: dict[str, tuple[Setting, Setting]] = {
    "paper": (PAPER, {"head_layers": 3, "trials": 4}),
    "released": (RELEASED, {"trials": 4, "samples": True}),
    "released_mended": (RELEASED | {"update": "released_flipped"}, {"trials": 4, "samples": True}),
}


def range_of(answers: int) -> str:
    """The range of a budget: the settings of that range are used."""
    return next(name for name, last in LAST_OF_RANGE.items() if answers <= last)


@cache
def validation_sets(draw: int) -> Sets:
    """Questions to tune on: both of the validation split, so that no test question chooses a setting."""
    return bandits.standardised(
        frozen_llm.sample_mixture_questions(bandits.TRAIN, seed=draw, split="validation"),
        frozen_llm.sample_mixture_questions(400, seed=100 + draw, split="validation"),
    )


def config_of(method: str, setting: Setting, seed: int, budget: int) -> BanditConfig:
    """How REINFORCE trains with a budget of answers: tau falls over its updates."""
    size = BATCHES.get(method, 1)
    updates = max(1, budget // size)
    schedule = {"updates": updates, "batch_size": size, "decay": FINAL_TEMPERATURE ** (1 / updates)}
    return BanditConfig(**{**schedule, **setting, "seed": seed})


def judged(sets: Sets, actions: torch.Tensor) -> tuple[float, float]:
    """Expected reward and tokens of actions on the questions to judge by."""
    test = sets[1]
    rewards = test.surface.expected(test.all, actions)
    return rewards.mean().item(), test.tokens[test.surface.contexts, actions].mean().item()


def curves(
    method: str,
    settings: Sequence[Setting],
    sets: Sequence[Sets],
    seeds: Sequence[int],
    answers: Sequence[int],
) -> Found:
    """Run a method with a setting, sets and a seed each."""
    if method in BATCHES:
        for budget in answers:
            if budget < BATCHES[method]:
                continue
            configs = [config_of(method, *one, budget) for one in zip(settings, seeds, strict=True)]
            for _, rewards, tokens in bandit_stack.learning_curves(configs, sets, [budget]):
                yield from ((n, budget, float(rewards[n]), float(tokens[n])) for n in range(len(sets)))
        return
    for number, (setting, own, seed) in enumerate(zip(settings, sets, seeds, strict=True)):
        if method == "best_fixed":
            for budget in answers:
                yield number, budget, *judged(own, _fixed(own, setting, seed, budget))
        else:
            run = AnswerByAnswer(own[0], **LINEAR[method], **setting, seed=seed)
            for budget, chosen in learning_curve(run, own[1], answers):
                yield number, budget, *judged(own, torch.tensor(chosen))


def _fixed(sets: Sets, setting: Setting, seed: int, budget: int) -> torch.Tensor:
    train, test = sets
    setting = setting | {"start": min(setting["start"], budget)}
    options = {"questions": len(train.questions), "requests": budget, "seed": seed}
    action, _ = rivals.best_fixed(SPACE.size, train.surface, **options, **setting)
    return torch.full((len(test.questions),), action)


# ---- tuning ------------------------------------------------------------------------------------


def grid_of(method: str) -> list[Setting]:
    """The settings that a method may have."""
    return GRIDS["reinforce" if method in BATCHES else "linear" if method in LINEAR else method]


def tune(method: str) -> pd.DataFrame:
    """Every setting on every validation draw at the budgets of RANGES: a row each, with its reward."""
    runs = list(product(grid_of(method), DRAWS))
    sets = [validation_sets(draw) for _, draw in runs]
    settings, draws = [setting for setting, _ in runs], [draw for _, draw in runs]
    answers = [count for counts in RANGES.values() for count in counts]
    rows = [
        settings[n] | {"draw": draws[n], "answers": count, "reward": round(reward, 4)}
        for n, count, reward, _ in curves(method, settings, sets, draws, answers)
    ]
    return pd.DataFrame(rows)


def chosen(method: str, name: str) -> Setting:
    """The setting with the best mean reward in a range of budgets, among those tried."""
    tried = pd.read_csv(RUNS / "06_tuning" / f"{method}.csv")
    names = list(grid_of(method)[0])
    mean = tried[tried["answers"].isin(RANGES[name])].groupby(names)["reward"].mean()
    best = mean.idxmax()
    return {key: type(grid_of(method)[0][key])(value) for key, value in zip(names, best, strict=True)}


# ---- runs --------------------------------------------------------------------------------------


def tuned_runs(method: str, seeds: Sequence[int]) -> Found:
    """A tuned method at every budget, with the settings of the budget's range."""
    sets = [bandits.question_sets(seed) for seed in seeds]
    for name in RANGES:
        answers = [count for count in ANSWERS if range_of(count) == name]
        settings = [chosen(method, name)] * len(seeds)
        yield from curves(method, settings, sets, seeds, answers)


def along_one_training(method: str, seeds: Sequence[int]) -> Found:
    """One training to the largest budget, judged at every budget on its way."""
    sets = [bandits.question_sets(seed) for seed in seeds]
    name = method.removesuffix("_anytime")
    changes, options = LITERAL[method] if method in LITERAL else (chosen(name, "many"), {})
    configs = [config_of(name, changes, seed, ANSWERS[-1]) for seed in seeds]
    answers = [count for count in ANSWERS if count >= configs[0].batch_size]
    for count, rewards, tokens in bandit_stack.learning_curves(configs, sets, answers, **options):
        print(method, count, rewards.mean().round(3), flush=True)
        yield from ((n, count, float(rewards[n]), float(tokens[n])) for n in range(len(seeds)))


def flat_runs(method: str, seeds: Sequence[int]) -> Found:
    """What needs no answers: random, oracle, and the action that is best on the test questions themselves."""
    for number, seed in enumerate(seeds):
        sets = bandits.question_sets(seed)
        actions, _ = bandits.actions_of(method, *sets, seed, bandits.DEFAULTS)
        for count in ANSWERS:
            yield number, count, *judged(sets, actions)


FLAT = ("random", "best_fixed_known", "oracle")
ANYTIME = tuple(f"reinforce_{size}_anytime" for size in (1, 4, 64))
METHODS = (*TUNED, *ANYTIME, *LITERAL, *FLAT)


def run(method: str, seeds: Sequence[int] = SEEDS) -> pd.DataFrame:
    """A method at every budget: columns seed, answers, reward, tokens."""
    how = tuned_runs if method in TUNED else flat_runs if method in FLAT else along_one_training
    rows = [
        (seeds[number], answers, round(reward, 4), round(tokens, 2))
        for number, answers, reward, tokens in how(method, seeds)
    ]
    return pd.DataFrame(rows, columns=["seed", "answers", "reward", "tokens"]).sort_values(
        ["seed", "answers"]
    )


def write_rewards(study: str, method: str, rows: pd.DataFrame, command: str, **facts: Any) -> None:
    """Ship the rows of a study's method as rewards.csv, with where they come from."""
    folder = RUNS / study / method
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "rewards.csv", rows.to_csv(index=False))
    write_json(folder / "provenance.json", provenance(command=command, **facts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["tune", "run"])
    parser.add_argument("methods", nargs="+", choices=METHODS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for method in given.methods:
        command = f"python -m lib.studies.bandit_budget {given.what} {method}"
        if given.what == "tune":
            path = RUNS / "06_tuning" / f"{method}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, tune(method).to_csv(index=False))
            print(method, {name: chosen(method, name) for name in RANGES}, flush=True)
        else:
            rows = run(method)
            settings = {name: chosen(method, name) for name in RANGES} if method in TUNED else {}
            write_rewards("06_budget", method, rows, command, settings=settings)
            print(method, rows.groupby("answers")["reward"].mean().round(3).to_dict(), flush=True)


if __name__ == "__main__":
    main()
