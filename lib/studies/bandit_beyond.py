"""What becomes of a learnt policy elsewhere: other questions, other words, other LLMs, wrong judgements.

python -m lib.studies.bandit_beyond beyond embeddings heads few_shot     ten seeds each, to 06_<study>

All learners have ENOUGH answers and the settings that `bandit_budget` chose; `few_shot` has fewer of both.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from lib.bandit.actions import HEADS
from lib.dial import frozen_llm
from lib.dial.surface import Surface
from lib.dial.world import MAX_DEPTH, Question
from lib.studies import bandits, rivals
from lib.studies.bandit_budget import (
    LINEAR,
    LITERAL,
    RUNS,
    SEEDS,
    Sets,
    chosen,
    config_of,
    curves,
    judged,
    range_of,
    write_rewards,
)
from lib.studies.bandit_posteriors import AnswerByAnswer
from lib.studies.bandit_stack import Stack, learning_curves
from lib.studies.bandits import NORM, SPACE, QuestionSet
from lib.studies.embedders import hashed_ngrams
from lib.studies.llm_variants import TABLES

ENOUGH = 25_600  # answers
LEARNED = "reinforce_64"
Chosen = Callable[[int, Sets], torch.Tensor]  # number of the seed, its sets -> actions on the test questions


# ---- learners ----------------------------------------------------------------------------------


def learners(seeds: Sequence[int], trains: Sequence[QuestionSet]) -> dict[str, Chosen]:
    """Train every method on these sets; each can then choose on any test questions."""
    setting = chosen(LEARNED, "many")
    stack = Stack([config_of(LEARNED, setting, seed, ENOUGH) for seed in seeds], trains)
    stack.train(stack.config.updates)
    linear = [
        AnswerByAnswer(train, **LINEAR["lin_ts"], **chosen("lin_ts", "many"), seed=seed)
        for seed, train in zip(seeds, trains, strict=True)
    ]
    for run in linear:
        for _ in range(ENOUGH):
            run.answer()
    fixed = [best_action(train, seed) for seed, train in zip(seeds, trains, strict=True)]
    return {
        "learned": lambda n, sets: stack.greedy(n, sets[1]),
        "lin_ts": lambda n, sets: torch.tensor(linear[n].choose(sets[1])),
        "best_fixed": lambda n, sets: torch.full((len(sets[1].questions),), fixed[n]),
        "random": lambda n, sets: rivals.random_actions(len(sets[1].questions), SPACE.size, seeds[n]),
        "oracle": lambda n, sets: sets[1].surface.values[sets[1].surface.contexts].argmax(-1),
    }


def best_action(train: QuestionSet, seed: int) -> int:
    """The best fixed action that ENOUGH answers find."""
    options = {"questions": len(train.questions), "requests": ENOUGH, "seed": seed}
    return rivals.best_fixed(SPACE.size, train.surface, **options, **chosen("best_fixed", "many"))[0]


# ---- beyond what was trained on ----------------------------------------------------------------


@dataclass(frozen=True)
class Lesson:
    """What is learnt from: whose answers, which questions, how many judgements are wrong."""

    table: Path = frozen_llm.TABLE
    mixtures: tuple[str, ...] = tuple(frozen_llm.MIXTURES)
    depths: range | None = None
    flips: float = 0.0


@dataclass(frozen=True)
class Condition:
    """A lesson, and what is asked afterwards, of whom."""

    lesson: Lesson = field(default_factory=Lesson)
    table: Path = frozen_llm.TABLE
    mixtures: tuple[str, ...] = tuple(frozen_llm.MIXTURES)
    depths: range | None = None


HARD = range(7, MAX_DEPTH + 1)
OTHERS = ("close", "distant", "other_seed", "other_habits")


def conditions() -> dict[str, Condition]:
    """By name; tables that are not there are left out."""
    found = {
        "as_trained": Condition(),
        "hard": Condition(depths=HARD),
        "hard_from_easier": Condition(Lesson(depths=range(1, 7)), depths=HARD),
        "sums": Condition(mixtures=("sums",)),
        "sums_from_others": Condition(Lesson(mixtures=("products", "mixed")), mixtures=("sums",)),
        **{f"flips_{rate}": Condition(Lesson(flips=rate)) for rate in (0.05, 0.1, 0.2, 0.3)},
        "deeper": Condition(table=TABLES / "deeper", depths=range(MAX_DEPTH + 1, MAX_DEPTH + 5)),
    }
    for name in OTHERS:
        found[name] = Condition(table=TABLES / name)
        found[f"{name}_own"] = Condition(Lesson(TABLES / name), table=TABLES / name)
    return {name: one for name, one in found.items() if (one.table / "table.csv").exists()}


@lru_cache(maxsize=64)
def _embedded(questions: tuple[Question, ...]) -> torch.Tensor:
    return bandits.embed(questions)


def sets_of(condition: Condition, seed: int) -> Sets:
    """Training questions as the lesson has them, and test questions as the condition has them."""
    lesson, number = condition.lesson, bandits.NEW_DRAWS + seed
    sample = frozen_llm.sample_mixture_questions
    learnt = sample(
        bandits.TRAIN, seed=number, split="validation", mixtures=lesson.mixtures, depths=lesson.depths
    )
    asked = sample(
        bandits.TEST, seed=number, split="test", mixtures=condition.mixtures, depths=condition.depths
    )
    tables = (lesson.table, condition.table)
    train, test = bandits.standardised(
        learnt, asked, embedder=lambda few: _embedded(tuple(few)), tables=tables
    )
    flipped = lesson.flips + (1 - 2 * lesson.flips) * train.surface.values
    return replace(train, surface=Surface(flipped, train.surface.contexts)), test


def beyond(seeds: Sequence[int]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every method under every condition that is not shipped yet: method, row; after the rows that are."""
    shipped = {path.parent.name: pd.read_csv(path) for path in (RUNS / "06_beyond").glob("*/rewards.csv")}
    for method, rows in shipped.items():
        yield from ((method, row) for row in rows.to_dict("records"))
    done = set(shipped["learned"]["condition"]) if shipped else set()
    every = {name: one for name, one in conditions().items() if name not in done}
    for lesson in dict.fromkeys(one.lesson for one in every.values()):
        mine = {name: one for name, one in every.items() if one.lesson == lesson}
        found = None
        for name, condition in mine.items():
            sets = [sets_of(condition, seed) for seed in seeds]
            found = found or learners(seeds, [train for train, _ in sets])
            yield from _judged(found, sets, seeds, condition=name)


def _judged(
    found: Mapping[str, Chosen], sets: Sequence[Sets], seeds: Sequence[int], **facts: Any
) -> Iterator[tuple[str, dict[str, Any]]]:
    for method, choose in found.items():
        for number, seed in enumerate(seeds):
            reward, tokens = judged(sets[number], choose(number, sets[number]))
            yield method, {"seed": seed, **facts, "reward": round(reward, 4), "tokens": round(tokens, 2)}


# ---- what a question is read with --------------------------------------------------------------


def _ngrams(questions: Sequence[Question]) -> torch.Tensor:
    return hashed_ngrams([question.text for question in questions])


def _kind_and_depth(questions: Sequence[Question]) -> torch.Tensor:
    """What there is to know: one number for each kind and depth."""
    cells = [(kind, depth) for kind in frozen_llm.MIXTURES for depth in range(1, MAX_DEPTH + 1)]
    places = torch.tensor([cells.index((frozen_llm.mixture(q), q.depth)) for q in questions])
    return torch.nn.functional.one_hot(places, len(cells)).float()


def embeddings(seeds: Sequence[int]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The policy and LinTS on the LLM's own states, on hashed n-grams, and on kind and depth themselves."""
    for name, embedder in {"hidden": None, "ngrams": _ngrams, "kind_and_depth": _kind_and_depth}.items():
        sets = [bandits.question_sets(seed) for seed in seeds]
        if embedder:  # of unit length: a word that no training question has would be blown up by scaling
            train, test = (
                [replace(one, embeddings=NORM * embedder(one.questions)) for one in part]
                for part in zip(*sets, strict=True)
            )
            sets = list(zip(train, test, strict=True))
        found = learners(seeds, [train for train, _ in sets])
        two = {method: found[method] for method in ("learned", "lin_ts")}
        yield from _judged(two, sets, seeds, embedding=name)


# ---- which head matters ------------------------------------------------------------------------


def heads(seeds: Sequence[int]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The policy with some heads held at the value that they have in the best fixed action."""
    sets = [bandits.question_sets(seed) for seed in seeds]
    fixed = torch.tensor([best_action(train, seed) for seed, (train, _) in zip(seeds, sets, strict=True)])
    values = torch.stack([SPACE.split(fixed)[head] for head in HEADS], 1).numpy()  # (S, 3)
    free = {"all": HEADS, "best_fixed": ()}
    free |= {f"only_{head}": (head,) for head in HEADS}
    free |= {f"without_{head}": tuple(one for one in HEADS if one != head) for head in HEADS}
    setting = chosen(LEARNED, "many")
    configs = [config_of(LEARNED, setting, seed, ENOUGH) for seed in seeds]
    for method, choosing in free.items():
        held = np.where([head in choosing for head in HEADS], -1, values)
        for _, rewards, tokens in learning_curves(configs, sets, [ENOUGH], held=held):
            for seed, reward, cost in zip(seeds, rewards.tolist(), tokens.tolist(), strict=True):
                yield method, {"seed": seed, "reward": round(reward, 4), "tokens": round(cost, 2)}


# ---- few questions -----------------------------------------------------------------------------

QUESTIONS, EACH = (50, 100, 400), (1, 4, 16)


def few_shot(seeds: Sequence[int]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Few questions, each answered 1, 4 or 16 times on average."""
    for questions in QUESTIONS:
        sets = [bandits.question_sets(seed, shots=questions) for seed in seeds]
        for answers in (questions * each for each in EACH):
            for method in ("best_fixed", "lin_ts", "reinforce_1", "reinforce_4", "paper", "released_mended"):
                found = _few(method, sets, seeds, answers)
                for number, reward, tokens in found:
                    row = {"seed": seeds[number], "questions": questions, "answers": answers}
                    yield method, row | {"reward": round(reward, 4), "tokens": round(tokens, 2)}


def _few(
    method: str, sets: Sequence[Sets], seeds: Sequence[int], answers: int
) -> Iterator[tuple[int, float, float]]:
    if method not in LITERAL:
        settings = [chosen(method, range_of(answers))] * len(seeds)
        for number, _, reward, tokens in curves(method, settings, sets, seeds, [answers]):
            yield number, reward, tokens
        return
    changes, options = LITERAL[method]
    configs = [config_of(method, changes, seed, answers) for seed in seeds]
    for _, rewards, costs in learning_curves(configs, sets, [answers], **options):
        yield from zip(range(len(seeds)), rewards.tolist(), costs.tolist(), strict=True)


STUDIES = {"beyond": beyond, "embeddings": embeddings, "heads": heads, "few_shot": few_shot}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="+", choices=STUDIES)
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    for study in given.studies:
        rows = [row | {"method": method} for method, row in STUDIES[study](range(given.seeds))]
        table = pd.DataFrame(rows)
        for method, own in table.groupby("method", sort=False):
            command = f"python -m lib.studies.bandit_beyond {study}"
            write_rewards(f"06_{study}", str(method), own.drop(columns="method"), command, answers=ENOUGH)
        by = [name for name in ("condition", "embedding", "questions", "answers") if name in table]
        print(table.groupby(["method", *by], sort=False)["reward"].mean().round(3).to_string(), flush=True)


if __name__ == "__main__":
    main()
