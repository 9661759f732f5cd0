"""AdaReasoner (2505.17312): a small policy outside a frozen LLM picks instruction, temperature and steps.

The LLM is asked once and rewarded once, so this is a contextual bandit. The policy has a shared trunk and
one head for each part of the configuration; REINFORCE trains it, Boltzmann sampling explores.
"""

import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lib.bandit import learner
from lib.bandit.actions import HEADS
from lib.bandit.environments import Environment
from lib.bandit.learner import ConfigurationPolicy, Count, Decisions
from lib.checked import Range, check_fields, identity
from lib.runs import KeptLines, Run, digest, end_by, heard, write_rows

Row = dict[str, float]


class NoAnswersError(RuntimeError):
    """The frozen LLM answered nothing in a whole update; what was learnt before is saved."""


@dataclass(frozen=True)
class BanditConfig:
    """How to train. The paper: baseline "none", no bonus, gradient_at "one", optimizer "sgd" at 0.01.

    `baseline`: "mean" subtracts the mean of the last `window` rewards before the batch, "zscore" is the
    released code's, among the last `window` up to the reward itself. Both mix easy and hard questions; ours,
    "question", is the mean of the last `question_window` rewards of the same question. `heads` names the
    heads that choose; the others stay random. `entropy_bonus`, ours too, is added per head in nats: logits
    grow as tau falls, so annealing alone may settle on the first good action.
    """

    updates: Count = 400
    batch_size: Count = 32
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: Annotated[float, Range(above=0, high=1)] = 5e-3
    initial_temperature: Annotated[float, Range(above=0)] = 1.0
    decay: Annotated[float, Range(above=0, high=1)] = 0.997
    schedule: Literal["exponential", "linear", "constant"] = "exponential"
    baseline: Literal["none", "mean", "zscore", "question"] = "question"
    window: Count = 256
    question_window: Count = 20
    gradient_at: Literal["sampling", "one"] = "sampling"
    update: Literal["reinforce", "released", "released_flipped"] = "reinforce"
    reward_shift: float = 0.0
    entropy_bonus: Annotated[float, Range(0)] = 0.05
    heads: tuple[Literal["instruction", "temperature", "steps"], ...] = HEADS
    save_every: Count = 50
    seed: Annotated[int, Range(0)] = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.heads:
            raise ValueError(f"BanditConfig.heads takes one or more of {', '.join(HEADS)}, got none")

    def temperature(self, step: int) -> float:
        """The exploration temperature of an update."""
        if self.schedule == "linear":
            return learner.linear_temperature(step, self.initial_temperature)
        decay = self.decay if self.schedule == "exponential" else 1.0
        return learner.annealed_temperature(step, self.initial_temperature, decay)


class BanditTrainer:
    """Trains a policy on questions, given by their embeddings (N, D), with the rewards of an environment.

    Every decision is kept with its propensity. Given a run, it saves and resumes: all randomness comes from
    the seed and the number of the update, so a resumed run is the same run. Another configuration, policy,
    set of questions or environment starts anew, and what the last one left is kept (`Run.claim`).
    """

    def __init__(
        self,
        policy: ConfigurationPolicy,
        embeddings: torch.Tensor,
        environment: Environment,
        config: BanditConfig = BanditConfig(),
        run: Run | None = None,
    ):
        self.policy, self.embeddings, self.environment = policy, embeddings, environment
        self.config, self.run = config, run
        make = torch.optim.Adam if config.optimizer == "adam" else torch.optim.SGD
        self.optimizer = make(policy.parameters(), lr=config.learning_rate)
        self.step = 0
        self.decisions: list[dict[str, Any]] = []
        self._last_rewards = defaultdict[int, deque[float]](lambda: deque(maxlen=config.question_window))
        self.history: list[Row] = []
        self.stopped_by, self._asking, self.finished = 0, False, False
        self._settings: dict[str, Any] = asdict(config)
        if run is not None:
            self._settings |= {"policy": digest(dict(policy.state_dict())), "embeddings": digest(embeddings)}
            with run.alone():
                self._settings["environment"] = identity(environment)
                self._load(run)

    def train(self, *, stop_at: int | None = None, say: Callable[[str], None] | None = None) -> list[Row]:
        """Run the updates that are left, a row each.

        Ctrl-C saves and raises KeyboardInterrupt; SIGTERM and SIGHUP save and end the process. None waits for
        the environment's reply.
        """
        last = min(stop_at or self.config.updates, self.config.updates)
        begun, self.stopped_by = time.monotonic(), 0
        with self.run.alone() if self.run is not None else nullcontext(), heard(self._stop):
            if self.run is not None:
                self._load(self.run)  # another may have trained here since
            try:
                while self.step < last and not self.stopped_by:
                    row = self.update()
                    due = self.step % max(1, last // 10) == 0 or self.step == last
                    if say is not None and due:
                        found = f"reward {row['reward']:.3f}   tau {row['tau']:.2f}"
                        say(f"update {self.step:>4} of {last}   {found}   {time.monotonic() - begun:4.0f} s")
                    if self.step % self.config.save_every == 0:
                        self.save()
            except KeyboardInterrupt:
                if not self.stopped_by:
                    raise
            finally:
                self._asking = False
                self.save()
            if self.run is not None and not self.finished and self.step == self.config.updates:
                self.run.keep({"updates": self.step})
        end_by(self.stopped_by, f"update {self.step}")
        return self.history

    def update(self) -> Row:
        """One update: draw questions, choose configurations, ask, learn from what was answered."""
        config, tau = self.config, self.config.temperature(self.step)
        seed = config.seed * 1_000_003 + self.step
        generator = torch.Generator().manual_seed(seed)
        questions = torch.randint(len(self.embeddings), (config.batch_size,), generator=generator)
        embeddings = self.embeddings[questions]
        chosen = learner.choose(self.policy, embeddings, heads=config.heads, temperature=tau, seed=seed)
        self._asking = True  # nothing is learnt before the reply
        rewards = self.environment(questions, chosen.actions, seed)
        self._asking = False
        answered = ~rewards.isnan()
        if not answered.any():
            none = f"none of the {len(rewards)} requests of update {self.step + 1} was answered"
            remedy = "see what the server says, then call train again: it goes on from here"
            raise NoAnswersError(f"{none}; {remedy}")
        shifted = rewards[answered] + config.reward_shift
        advantages = self._advantages(questions[answered], shifted)
        learning, logits = (*config.heads, "joint"), self.policy(embeddings)
        logits = {head: values[answered] for head, values in logits.items() if head in learning}
        actions = {head: chosen.choices[head][answered] for head in logits}
        if config.update.startswith("released"):
            sign = 1 if config.update == "released" else -1
            loss = sign * learner.released_loss(logits, actions, advantages, temperature=tau)
        else:
            at = tau if config.gradient_at == "sampling" else 1.0
            loss = learner.reinforce_loss(logits, actions, advantages, temperature=at)
            for values in logits.values():
                chances = learner.boltzmann_probabilities(values, at)
                loss = loss - config.entropy_bonus * learner.entropy(chances).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        found = {"loss": loss.item(), "reward": rewards.nanmean().item(), "tau": tau}
        found["answered"] = answered.float().mean().item()
        for head, values in logits.items():
            chances = learner.boltzmann_probabilities(values.detach(), tau)
            found[f"entropy/{head}"] = learner.entropy(chances).mean().item()
        return self._record(questions, chosen, rewards, found)

    def _advantages(self, questions: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
        """Rewards (B,) less the baseline, from what came before; at first from the batch itself."""
        config = self.config
        if config.baseline == "none":
            return rewards
        past = [d["reward"] for d in self.decisions[-config.window :] if d["reward"] is not None]
        if config.baseline == "zscore":
            return learner.zscores(rewards, torch.tensor(past) + config.reward_shift, config.window)
        window = torch.tensor(past) + config.reward_shift if past else rewards
        if config.baseline == "question":
            means = {q: sum(last) / len(last) for q, last in self._last_rewards.items()}
            usual = window.mean().item() - config.reward_shift
            baseline = torch.tensor([means.get(q, usual) for q in questions.tolist()])
            return rewards - baseline - config.reward_shift
        return rewards - window.mean()

    def _keep(self, decisions: Iterable[dict[str, Any]]) -> None:
        for decision in decisions:
            self.decisions.append(decision)
            if decision["reward"] is not None:
                self._last_rewards[decision["question"]].append(decision["reward"])

    def _record(self, questions: torch.Tensor, chosen: Decisions, rewards: torch.Tensor, found: Row) -> Row:
        self.step += 1
        columns = {
            "question": questions.tolist(),
            "action": chosen.actions.tolist(),
            "propensity": chosen.propensity.tolist(),
            "reward": [None if math.isnan(reward) else reward for reward in rewards.tolist()],
        }
        heads = zip(*(p.tolist() for p in chosen.propensities.values()), strict=True)
        columns["propensities"] = [dict(zip(chosen.propensities, row, strict=True)) for row in heads]
        rows = zip(*columns.values(), strict=True)
        self._keep({"step": self.step} | dict(zip(columns, row, strict=True)) for row in rows)
        row = {"step": self.step, **found}
        self.history.append(row)
        if self.run is not None:
            self.run.log(self.step, row)
        return row

    # -- saving and resuming

    def save(self) -> None:
        """Write decisions, and policy and optimizer, to the run's checkpoint; each file in one step."""
        if self.run is None:
            return
        write_rows(self.run.checkpoint / "decisions.jsonl", self.decisions)
        moments = self.optimizer.state_dict()["state"]
        states = {"policy": self.policy.state_dict()} | {f"optimizer.{n}": moments[n] for n in moments}
        tensors = {
            f"{part}.{name}": torch.as_tensor(value).clone()
            for part, state in states.items()
            for name, value in state.items()
        }
        new = self.run.checkpoint / "policy.new"
        save_file(tensors, new, metadata={"step": str(self.step)})
        new.replace(new.with_suffix(".safetensors"))

    def _load(self, run: Run) -> None:
        """Go on where the checkpoint stands, if there is one; what was logged after it is dropped."""
        self.finished = run.claim(self._settings, say=None if self.finished else print) is not None
        if (run.checkpoint / "policy.safetensors").exists():
            self._read(run)
        run.rewind(self.step)
        self.history = run.metrics()

    def _read(self, run: Run) -> None:
        states: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)  # of the policy, and by parameter
        with safe_open(run.checkpoint / "policy.safetensors", framework="pt") as file:
            self.step = int(file.metadata()["step"])
            for key in file.keys():  # noqa: SIM118
                kind, _, rest = key.partition(".")
                part, name = (kind, rest) if kind == "policy" else rest.split(".")
                states[part][name] = file.get_tensor(key)
        self.policy.load_state_dict(states.pop("policy"))
        groups = self.optimizer.state_dict()["param_groups"]
        moments = {int(number): state for number, state in states.items()}
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.decisions.clear()
        self._last_rewards.clear()
        kept = KeptLines(run.checkpoint / "decisions.jsonl").read()
        self._keep(row for row in kept if row["step"] <= self.step)

    def _stop(self, number: int, frame: Any) -> None:
        """A signal ends training, after an update that learns."""
        self.stopped_by = number
        if self._asking:
            raise KeyboardInterrupt
