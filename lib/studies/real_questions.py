"""AdaReasoner on questions of any source, through any frozen LLM, and its rivals on the same budget.

Every method that learns gets the same number of answers; what it does afterwards is scored on the same test
questions. Replies that were cut are wrong; a question to which nobody replied is left out, and counted. There
is one seed, so intervals are over questions alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd
import torch

from lib.bandit.actions import Action, ActionSpace
from lib.bandit.environments import LLMEnvironment
from lib.bandit.learner import ConfigurationPolicy, choose
from lib.bandit.llms import CUT, LLM, Request, ServerLLM
from lib.bandit.training import BanditConfig, BanditTrainer
from lib.checked import identity
from lib.engines.server import ChatServer
from lib.runs import Run, located
from lib.sources.loading import load
from lib.studies.embedders import Embedder
from lib.studies.judges import Judge
from lib.studies.prompting import FRAME, configured_prompt, read_reply
from lib.studies.prompting_baselines import self_consistency
from lib.studies.rivals import ConfigurationBandit, best_fixed, random_actions
from lib.tasks import Task
from lib.verify import is_correct

AT_ONCE = 100  # test questions between two lines of progress
LEARNERS = ("learned", "LinTS", "best fixed")
# Best at 100 to 400 answers of the dial LLM on validation questions (`lib.studies.bandit_budget`).
LINTS: dict[str, Any] = {"factorised": True, "exploration": 0.2, "ridge": 3.0}
REINFORCE: dict[str, Any] = {"learning_rate": 1e-2, "entropy_bonus": 0.1}
METHODS = (*LEARNERS, "random", "CoT", "self-consistency")


def split(
    source: str, path: str = "", *, train: int = 100, test: int = 900, seed: int = 0
) -> tuple[list[Task], list[Task]]:
    """Questions of a source of notebook 01, to learn from and to test on: its test split, drawn apart.

    From `path`, a file or a folder with <source>_test.jsonl, or from the hub. No question occurs twice, and
    rows that cannot be read are left out. The test is smaller where there are not enough.
    """
    place = located(path) if path else None
    if place is not None and place.is_dir():
        place /= f"{source}_test.jsonl"
    unique = {task.key: task for task in load(source, place, keep_going=True).examples}
    if len(unique) <= train:
        raise ValueError(
            f"{source} has {len(unique)} questions: with {train} to learn from, none is left to test"
        )
    order = torch.randperm(len(unique), generator=torch.Generator().manual_seed(seed)).tolist()
    tasks = [list(unique.values())[place] for place in order]
    return tasks[:train], tasks[train : train + test]


def step_by_step(task: Task) -> str:
    """Chain of thought: the same frame, and no configuration."""
    return FRAME.format(question=task.question, strategy="Think step by step.")


def configured(task: Task, action: Action) -> str:
    """What a configuration asks."""
    return configured_prompt(task.question, action)


@dataclass(frozen=True)
class Contest:
    """The methods of this file on one frozen LLM: `budget` answers for each that learns, `batch` at a time.

    The reward is the judge's, or whether the answer is right. `votes` samples of chain of thought make
    self-consistency; its answers cost as many times more at the test, and nothing before.
    """

    llm: LLM
    train: Sequence[Task]
    test: Sequence[Task]
    embed: Embedder
    judge: Judge | None = None
    budget: int = 400
    batch: int = 4
    votes: int = 5
    seed: int = 0
    space: ActionSpace = field(default_factory=ActionSpace.paper)
    render: Callable[[Task, Action], str] = configured
    cot: Callable[[Task], str] = step_by_step
    read: Callable[[str], str | None] = read_reply

    # -- before

    def requests(self) -> list[Request]:
        """As many requests as the contest sends at most, each about as long."""
        middle = self.space.decode(self.space.size // 2)
        asked = [self.train[place % len(self.train)] for place in range(len(LEARNERS) * self.budget)]
        asked += [task for task in self.test for _ in range(len(METHODS) - 1 + self.votes)]
        return [Request(self.render(task, middle), 1.0, place) for place, task in enumerate(asked)]

    def estimate(self) -> str:
        """What the contest takes at most, to read before it starts."""
        if isinstance(self.llm, ServerLLM):
            return self.llm.server.estimate(self.llm.bodies(self.requests()))
        return f"{len(self.requests()):,} requests to send at most"

    def _say_time(self, server: ChatServer, show: Callable[[str], None]) -> None:
        """How long it will take, by the first question."""
        begun = time.monotonic()
        self.llm.ask([Request(self.cot(self.test[0]), 0.0)])
        seconds = time.monotonic() - begun
        learning = len(LEARNERS) * self.budget
        turns = (
            learning / min(self.batch, server.workers) + (len(self.requests()) - learning) / server.workers
        )
        if seconds > 0.05:  # else it was kept
            show(f"one reply took {seconds:.1f} s: about {turns * seconds / 60:.0f} min in all")

    # -- learning

    @cached_property
    def vectors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of the training and of the test questions, (N, D) each."""
        learnt, asked = ([task.question for task in tasks] for tasks in (self.train, self.test))
        return self.embed(learnt), self.embed(asked)

    def world(self, tasks: Sequence[Task]) -> LLMEnvironment:
        """The frozen LLM asked about these questions."""

        def reward(task: Task, reply: str) -> float:
            return self.reward(task, reply)

        reward.setting = identity(self.judge or self.read)  # type: ignore[attr-defined]
        return LLMEnvironment(self.llm, tasks, self.space, self.render, reward)

    def reward(self, task: Task, reply: str) -> float:
        """Of one reply, in [0, 1]."""
        return float(self._scores([task], [reply], self.judge or self._exact)[0])

    def actions(self, method: str, run: Run | None = None) -> torch.Tensor:
        """What a method does at each test question, (N,), after it has learnt."""
        world, (learnt, asked) = self.world(self.train), self.vectors
        updates = self.budget // self.batch
        if method == "random":
            return random_actions(len(self.test), self.space.size, self.seed)
        if method == "best fixed":
            size, budget = self.space.size, {"questions": len(self.train), "requests": self.budget}
            best, _ = best_fixed(size, world, **budget, seed=self.seed, start=comparable(size, self.budget))
            return torch.full((len(self.test),), best)
        if method == "LinTS":
            bandit = ConfigurationBandit(learnt.shape[1], self.space, rule="lin_ts", **LINTS)
            bandit.train(learnt, world, updates=updates, batch_size=self.batch, seed=self.seed)
            return bandit.choose(asked)
        torch.manual_seed(self.seed)
        policy = ConfigurationPolicy(learnt.shape[1], self.space)
        reinforce = REINFORCE | {"decay": 0.3 ** (1 / updates), "updates": updates}
        config = BanditConfig(**reinforce, batch_size=self.batch, seed=self.seed)
        BanditTrainer(policy, learnt, world, config, run).train(say=print)
        return choose(policy, asked).actions

    # -- the test

    def run(self, run: Run | None = None, *, show: Callable[[str], None] = print) -> pd.DataFrame:
        """A row per method and test question: correct and judged are NaN where nobody replied.

        What the LLM has answered is kept by it, so a run that was killed goes on where it was.
        """
        if isinstance(self.llm, ServerLLM):
            self._say_time(self.llm.server, show)
        rows = [self._rows(method, self._replies(method, run, show)) for method in METHODS]
        return pd.concat(rows, ignore_index=True)

    def _replies(self, method: str, run: Run | None, show: Callable[[str], None]) -> list[str | None]:
        """One reply to each test question."""
        if method == "CoT":
            return self._ask(method, [Request(self.cot(task), 0.0) for task in self.test], show)
        if method == "self-consistency":
            many = [Request(self.cot(task), 0.7, vote) for task in self.test for vote in range(self.votes)]
            found = self._ask(method, many, show)
            return [
                self._elect(found[first : first + self.votes]) for first in range(0, len(found), self.votes)
            ]
        show(f"{method}: learns from {self.budget if method in LEARNERS else 0} answers")
        chosen = [self.space.decode(int(action)) for action in self.actions(method, run)]
        pairs = zip(self.test, chosen, strict=True)
        return self._ask(method, [Request(self.render(task, a), a.temperature) for task, a in pairs], show)

    def _ask(self, method: str, requests: Sequence[Request], show: Callable[[str], None]) -> list[str | None]:
        replies: list[str | None] = []
        for first in range(0, len(requests), AT_ONCE):
            replies += self.llm.ask(requests[first : first + AT_ONCE])
            show(f"{method}: {len(replies)} of {len(requests)} test answers, {replies.count(None)} missing")
        return replies

    def _elect(self, replies: Sequence[str | None]) -> str | None:
        """The first reply with the most frequent answer; None where nobody replied."""
        written = [reply for reply in replies if reply]
        elected = self_consistency(written, self.read)
        if elected is None:
            return CUT if any(reply is not None for reply in replies) else None
        return next(reply for reply in written if self.read(reply) == elected)

    def _rows(self, method: str, replies: Sequence[str | None]) -> pd.DataFrame:
        scores = {"correct": self._exact} | ({"judged": self.judge} if self.judge else {})
        written = [reply or "" for reply in replies]
        table = pd.DataFrame({"method": method, "seed": self.seed, "id": [task.id for task in self.test]})
        for name, judge in scores.items():
            found = self._scores(self.test, written, judge)
            table[name] = [math.nan if r is None else s for r, s in zip(replies, found, strict=True)]
        table["words"] = [math.nan if not reply else len(reply.split()) for reply in replies]
        table["cut"] = [reply == CUT for reply in replies]
        learnt, asked = (
            self.budget if method in LEARNERS else 0,
            self.votes if method == "self-consistency" else 1,
        )
        return table.assign(learnt_from=learnt, asked=asked)

    def _scores(self, tasks: Sequence[Task], replies: Sequence[str], judge: Judge) -> list[float]:
        """What a judge says of each reply; 0 where it was cut, whatever the judge."""
        columns = {name: [getattr(task, name) for task in tasks] for name in ("answer", "kind")}
        found = judge([task.question for task in tasks], replies, **columns)
        return [0.0 if reply == CUT else score for reply, score in zip(replies, found, strict=True)]

    def _exact(
        self, prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str], kind: Sequence[str]
    ) -> list[float]:
        triples = zip(completions, answer, kind, strict=True)
        return [float(is_correct(self.read(reply), reference, sort)) for reply, reference, sort in triples]


def comparable(size: int, budget: int) -> int:
    """How many of `size` actions halving can compare with so many answers, one each in the first round."""
    return max(k for k in range(1, size + 1) if k * max(1, math.ceil(math.log2(k))) <= budget)
