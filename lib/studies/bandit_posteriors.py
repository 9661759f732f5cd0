"""Thompson sampling and UCB, an answer at a time: `rivals.LinearBandit` on fixed questions.

`LinearBandit` computes the widths of all arms for every question that it meets, which is cheap for a batch.
Here each arm's means and widths at all training questions are kept, and an answer changes one arm's. A test
holds the two against each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lib.bandit.actions import HEADS
from lib.studies.bandits import NORM, SPACE, QuestionSet
from lib.studies.rivals import Rule


class Posterior:
    """Ridge regressions of the reward on contexts (Q, D), one per arm."""

    def __init__(self, contexts: np.ndarray, arms: int, ridge: float):
        self.contexts = contexts
        self.inverse = np.tile(np.eye(contexts.shape[1], dtype=np.float32) / ridge, (arms, 1, 1))
        self.weights = np.zeros((arms, contexts.shape[1]), np.float32)
        self.means = np.zeros((arms, len(contexts)), np.float32)
        self.squares = np.tile((contexts**2).sum(1) / ridge, (arms, 1))  # of the widths

    def widths(self, question: int) -> np.ndarray:
        """The standard deviation of each arm's value at a question, (A,)."""
        return np.sqrt(np.maximum(self.squares[:, question], 0))

    def learn(self, question: int, arm: int, reward: float) -> None:
        """Add an observation with noise of variance 1 (Sherman-Morrison)."""
        x = self.contexts[question]
        direction = self.inverse[arm] @ x
        scale = 1 + x @ direction
        surprise = (reward - self.means[arm, question]) / scale
        everywhere = self.contexts @ direction
        self.weights[arm] += surprise * direction
        self.means[arm] += surprise * everywhere
        self.squares[arm] -= everywhere**2 / scale
        self.inverse[arm] -= np.outer(direction, direction / scale)


class AnswerByAnswer:
    """One run of a rule on one set of questions.

    An arm is a whole action, or a value of a head where it is factorised. Where it reads no question, an arm
    has one mean.
    """

    def __init__(
        self,
        questions: QuestionSet,
        *,
        rule: Rule,
        exploration: float,
        ridge: float,
        factorised: bool,
        reads: bool,
        seed: int,
    ):
        self.rule, self.exploration, self.reads = rule, exploration, reads
        self.chances = questions.surface.values.numpy()[questions.surface.contexts]  # (Q, A)
        self.stream = np.random.default_rng(seed)
        contexts = self._contexts(questions)
        sizes = SPACE.sizes if factorised else {"joint": SPACE.size}
        self.heads = {name: Posterior(contexts, size, ridge) for name, size in sizes.items()}

    def _contexts(self, questions: QuestionSet) -> np.ndarray:
        if not self.reads:
            return np.ones((1, 1), np.float32)
        read = questions.embeddings.numpy() / NORM
        return np.concatenate([read, np.ones((len(read), 1), np.float32)], 1)

    def answer(self) -> None:
        """Draw a question, choose, be rewarded, learn."""
        question = int(self.stream.integers(len(self.chances)))
        place = question if self.reads else 0
        chosen = {}
        for name, head in self.heads.items():
            noise = self.stream.standard_normal(len(head.means))
            if self.rule == "lin_ucb":
                noise = 1 + 1e-6 * noise  # equal arms are drawn, or heads would move in lockstep
            scores = head.means[:, place] + self.exploration * head.widths(place) * noise
            chosen[name] = int(scores.argmax())
        reward = float(self.stream.random() < self.chances[question, _action(chosen)])
        for name, head in self.heads.items():
            head.learn(place, chosen[name], reward)

    def choose(self, questions: QuestionSet) -> np.ndarray:
        """The action with the best estimate for each question, (N,)."""
        contexts = self._contexts(questions)
        best = {name: (contexts @ head.weights.T).argmax(1) for name, head in self.heads.items()}
        return np.broadcast_to(_action(best), len(questions.questions))


def _action(chosen: dict[str, np.ndarray] | dict[str, int]) -> np.ndarray:
    if "joint" in chosen:
        return np.asarray(chosen["joint"])
    sizes, index = SPACE.sizes, np.asarray(chosen[HEADS[0]])
    for head in HEADS[1:]:
        index = index * sizes[head] + chosen[head]
    return index


def learning_curve(
    run: AnswerByAnswer, test: QuestionSet, answers: Sequence[int]
) -> Iterator[tuple[int, np.ndarray]]:
    """The actions on the test questions at each number of answers."""
    asked = 0
    for count in answers:
        for _ in range(count - asked):
            run.answer()
        asked = count
        yield count, run.choose(test)
