"""AdaReasoner (2505.17312): a small policy outside a frozen LLM picks instruction, temperature and steps.

The LLM is asked once and rewarded once, so this is a contextual bandit. The policy has a shared trunk and
one head for each part of the configuration; REINFORCE trains it, Boltzmann sampling explores.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from lib import dial_llm
from lib.llms import LLM, Request, Surface
from lib.runs import Run

HEADS = ("instruction", "temperature", "steps")


# ---- the action space --------------------------------------------------------------------------


class Action(NamedTuple):
    """One configuration of the frozen LLM."""

    instruction: str
    temperature: float
    steps: int


# The paper's ten strategies and ten emphases (appendix C, table 4), by meaning, in our own words.
STRATEGIES = (
    "Go through the problem in a clear order, one step after another.",
    "Give the analysis a firm structure and fill in each part with care.",
    "Look for how the ideas hang together, and spell out every link.",
    "Look at the matter from several sides and weigh other views.",
    "Be inventive: question what is usually taken for granted, and look for the unexpected.",
    "Be rigorous, and keep both the details and the whole in view.",
    "Notice what you assume, ask yourself whether it holds, and improve the argument.",
    "Explain each step so plainly that anyone can follow.",
    "Check the reasoning systematically for contradictions as you go.",
    "Finish with a summary of the main points and look once more whether the answer is complete.",
)
EMPHASES = (
    "Consider every way the question could be meant.",
    "Split the problem into small parts that fit together.",
    "Compare with similar cases that you know.",
    "Go over each step again so that nothing important is missed.",
    "Doubt the usual answer, but stay logical.",
    "Make sure that each premise is understood and used exactly.",
    "Mind the small details that are easily passed over.",
    "Use plain and simple words.",
    "Audit your own work and repair what does not agree.",
    "Hold the conclusion against known principles or facts.",
)


@dataclass(frozen=True)
class ActionSpace:
    """The configurations to choose from; the index counts steps fastest, then temperatures."""

    instructions: tuple[str, ...]
    temperatures: tuple[float, ...]
    steps: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("instructions", "temperatures", "steps"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must hold one or more different values, got {values}")

    @classmethod
    def paper(cls) -> ActionSpace:
        """100 instructions x 11 temperatures x 8 numbers of steps (paper, appendix C)."""
        pairs = tuple(f"{strategy} {emphasis}" for strategy in STRATEGIES for emphasis in EMPHASES)
        return cls(pairs, tuple(k / 10 for k in range(11)), tuple(range(3, 11)))

    @classmethod
    def released_code(cls) -> ActionSpace:
        """100 x 10 x 7: the released code starts at temperature 0.1 and ends at nine steps."""
        paper = cls.paper()
        return cls(paper.instructions, paper.temperatures[1:], paper.steps[:-1])

    @classmethod
    def dial(cls) -> ActionSpace:
        """3 x 4 x 6, for the frozen LLM of the dial world."""
        return cls(dial_llm.STYLES, dial_llm.TEMPERATURES, dial_llm.STEPS)

    @property
    def sizes(self) -> dict[str, int]:
        """How many values each head chooses from."""
        return dict(
            zip(HEADS, (len(self.instructions), len(self.temperatures), len(self.steps)), strict=True)
        )

    @property
    def size(self) -> int:
        return math.prod(self.sizes.values())

    def decode(self, index: int) -> Action:
        """The action with this index."""
        if not 0 <= index < self.size:
            raise ValueError(f"index must be 0 to {self.size - 1}, got {index}")
        rest, step = divmod(int(index), len(self.steps))
        instruction, temperature = divmod(rest, len(self.temperatures))
        return Action(self.instructions[instruction], self.temperatures[temperature], self.steps[step])

    def encode(self, action: Action | tuple[str, float, int]) -> int:
        """The index of this action; ValueError names the part that is not in the space."""
        index = 0
        parts = zip(HEADS, (self.instructions, self.temperatures, self.steps), action, strict=True)
        for name, values, value in parts:
            if value not in values:
                raise ValueError(f"{name} {value!r} is not in this action space; there are {values}")
            index = index * len(values) + values.index(value)
        return index

    def join(self, choices: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Indices per head, (B,) each, as indices of actions (B,)."""
        sizes = self.sizes
        rest = choices["instruction"] * sizes["temperature"] + choices["temperature"]
        return rest * sizes["steps"] + choices["steps"]

    def split(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        """Indices of actions (B,) as indices per head, (B,) each."""
        sizes = self.sizes
        rest, steps = indices // sizes["steps"], indices % sizes["steps"]
        return {
            "instruction": rest // sizes["temperature"],
            "temperature": rest % sizes["temperature"],
            "steps": steps,
        }


# ---- formulas ----------------------------------------------------------------------------------


def boltzmann_probabilities(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """softmax(logits / tau) over the last dimension (paper, eq. 3); the exploration temperature tau > 0."""
    if not temperature > 0:
        raise ValueError(f"the exploration temperature must be above 0, got {temperature}")
    return torch.softmax(logits / temperature, dim=-1)


def annealed_temperature(step: int, initial: float, decay: float) -> float:
    """tau_0 * alpha^t (paper, eq. 3); the paper gives no values for tau_0 and alpha."""
    return initial * decay**step


def linear_temperature(step: int, initial: float = 1.0, slope: float = 1e-4, floor: float = 0.1) -> float:
    """The schedule of the released code; it counts questions, so 100 of them leave tau at 0.99."""
    return max(initial - slope * step, floor)


def log_probabilities(
    logits: Mapping[str, torch.Tensor], actions: Mapping[str, torch.Tensor], temperature: float = 1.0
) -> dict[str, torch.Tensor]:
    """log pi_j(a_j) of each head: logits (B, K), actions (B,) -> (B,); they add up to the joint (eq. 2)."""
    return {
        head: torch.log_softmax(logits[head] / temperature, -1).gather(-1, actions[head][:, None])[:, 0]
        for head in logits
    }


def reinforce_loss(
    logits: Mapping[str, torch.Tensor],
    actions: Mapping[str, torch.Tensor],
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
    log_probs = sum(log_probabilities(logits, actions, temperature).values())
    return -(advantages * log_probs).mean()


def closed_form_gradient(
    logits: torch.Tensor, actions: torch.Tensor, advantages: torch.Tensor, *, temperature: float = 1.0
) -> torch.Tensor:
    """The gradient of `reinforce_loss` for one head's logits: -A (1[a] - p) / (tau B), shape (B, K)."""
    chosen = nn.functional.one_hot(actions, logits.shape[-1]).to(logits)
    probs = boltzmann_probabilities(logits, temperature)
    return -advantages[:, None] * (chosen - probs) / (temperature * len(logits))


def released_loss(
    logits: Mapping[str, torch.Tensor], actions: Mapping[str, torch.Tensor], rewards: torch.Tensor
) -> torch.Tensor:
    """A loss whose descent is the update of the released code: z / p(a) on the chosen logit alone.

    The code adds -lr * z / p(a) to the chosen logit, z the normalised reward: a good reward pushes its own
    action down. Also the -p terms of the other logits and 1 / tau are missing.
    """
    terms = []
    for head in logits:
        chosen = logits[head].gather(-1, actions[head][:, None])[:, 0]
        probs = torch.softmax(logits[head], -1).gather(-1, actions[head][:, None])[:, 0].detach()
        terms.append(rewards * chosen / (probs + 1e-8))
    return sum(terms).mean()


def entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """The entropy of each row in nats: (B, K) -> (B,)."""
    return -(probabilities * probabilities.clamp_min(1e-12).log()).sum(-1)


def regret_bound(steps: int, actions: int) -> float:
    """The paper's bound without its constant: sqrt(K |A| ln |A|), for rewards in [0, 1] (appendix B)."""
    return math.sqrt(steps * actions * math.log(actions))


# ---- the policy --------------------------------------------------------------------------------


class ConfigurationPolicy(nn.Module):
    """A shared trunk and a head of `head_layers` linear layers for each part of the configuration (eq. 2).

    The paper has three layers in a head and names no widths. The released code has one, and so have we: with
    three, some seeds settled early on a poor action. With `shared=False` each head has a trunk of its own.
    """

    def __init__(
        self,
        embedding_dim: int,
        action_space: ActionSpace,
        *,
        width: int = 64,
        head_layers: int = 1,
        shared: bool = True,
    ):
        super().__init__()
        self.action_space = action_space
        trunks = 1 if shared else len(HEADS)
        self.trunks = nn.ModuleList(
            nn.Sequential(nn.Linear(embedding_dim, width), nn.Tanh()) for _ in range(trunks)
        )
        self.heads = nn.ModuleDict(
            {name: _head(width, size, head_layers) for name, size in action_space.sizes.items()}
        )

    def forward(self, embeddings: torch.Tensor) -> dict[str, torch.Tensor]:
        """Embeddings (B, D) -> logits (B, K) of each head."""
        states = [trunk(embeddings) for trunk in self.trunks]
        return {
            name: head(states[min(index, len(states) - 1)])
            for index, (name, head) in enumerate(self.heads.items())
        }


class JointPolicy(nn.Module):
    """The same trunk with one head over all actions: nothing is shared between similar actions."""

    def __init__(
        self, embedding_dim: int, action_space: ActionSpace, *, width: int = 64, head_layers: int = 1
    ):
        super().__init__()
        self.action_space = action_space
        self.trunk = nn.Sequential(nn.Linear(embedding_dim, width), nn.Tanh())
        self.head = _head(width, action_space.size, head_layers)

    def forward(self, embeddings: torch.Tensor) -> dict[str, torch.Tensor]:
        """Embeddings (B, D) -> {"joint": logits (B, size)}."""
        return {"joint": self.head(self.trunk(embeddings))}


def _head(width: int, size: int, layers: int) -> nn.Sequential:
    """Linear layers with ReLU in between; the last starts at zero, so that every action is equally likely."""
    if layers < 1:
        raise ValueError(f"head_layers must be 1 or more, got {layers}")
    hidden = [part for _ in range(layers - 1) for part in (nn.Linear(width, width), nn.ReLU())]
    last = nn.Linear(width, size)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*hidden, last)


Policy = ConfigurationPolicy | JointPolicy


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
def decide(
    policy: Policy, embeddings: torch.Tensor, *, temperature: float | None = None, seed: int = 0
) -> Decisions:
    """Choose for embeddings (B, D): sampled at the exploration temperature, or greedily where it is None."""
    generator = torch.Generator().manual_seed(seed)
    choices, propensities = {}, {}
    for head, logits in policy(embeddings).items():
        if temperature is None:
            choices[head] = logits.argmax(-1)
            propensities[head] = torch.ones(len(logits))
            continue
        probs = boltzmann_probabilities(logits, temperature)
        choices[head] = torch.multinomial(probs, 1, generator=generator)[:, 0]
        propensities[head] = probs.gather(-1, choices[head][:, None])[:, 0]
    actions = choices["joint"] if "joint" in choices else policy.action_space.join(choices)
    return Decisions(choices, propensities, actions)


@torch.no_grad()
def action_probabilities(policy: Policy, embeddings: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """The probability of every action, (B, size); for spaces that fit into memory."""
    probs = {
        head: boltzmann_probabilities(logits, temperature) for head, logits in policy(embeddings).items()
    }
    if "joint" in probs:
        return probs["joint"]
    joint = torch.einsum("bi,bt,bs->bits", *(probs[head] for head in HEADS))
    return joint.flatten(1)


# ---- environments ------------------------------------------------------------------------------


class Environment(Protocol):
    """Asks the frozen LLM: questions (B,) and actions (B,) as indices -> rewards (B,), NaN for no answer."""

    def __call__(self, questions: torch.Tensor, actions: torch.Tensor, seed: int) -> torch.Tensor: ...


@dataclass(frozen=True)
class LLMEnvironment:
    """Rewards from a frozen LLM: `render(question, action)` is the prompt, `reward(question, reply)` scores.

    Reply None is no answer: its reward is NaN and is not learnt from. `samples` is how many different replies
    a question and an action have, so that an LLM with a cache need not answer them again. None: always new.
    """

    llm: LLM
    questions: Sequence[Any]
    action_space: ActionSpace
    render: Callable[[Any, Action], str]
    reward: Callable[[Any, str], float]
    samples: int | None = None

    def __call__(self, questions: torch.Tensor, actions: torch.Tensor, seed: int) -> torch.Tensor:
        chosen = [self.action_space.decode(action) for action in actions.tolist()]
        asked = [self.questions[index] for index in questions.tolist()]
        requests = []
        for place, (question, action) in enumerate(zip(asked, chosen, strict=True)):
            sample = 0 if action.temperature == 0 else seed * len(asked) + place
            if self.samples is not None:
                sample %= self.samples
            requests.append(Request(self.render(question, action), action.temperature, sample))
        replies = self.llm.ask(requests)
        return torch.tensor(
            [
                math.nan if reply is None else self.reward(question, reply)
                for question, reply in zip(asked, replies, strict=True)
            ]
        )


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
    return nn.functional.normalize(embeddings, dim=-1), Surface(values, contexts)


# ---- training ----------------------------------------------------------------------------------


class NoAnswersError(RuntimeError):
    """The frozen LLM answered nothing in a whole update; what was learnt before is saved."""


@dataclass(frozen=True)
class BanditConfig:
    """How to train. The paper: baseline "none", no bonus, gradient_at "one", optimizer "sgd" at 0.01.

    `baseline`: "mean" subtracts the mean of the last `window` rewards, "zscore" also divides by their
    population standard deviation (released code). Both mix easy and hard questions; ours, "question", is the
    mean of the last `question_window` rewards of the same question. `heads` names the heads that choose; the
    others stay random. `entropy_bonus`, ours too, is added per head in nats: logits grow as tau falls, so
    annealing alone may settle on the first good action.
    """

    updates: int = 400
    batch_size: int = 32
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = 5e-3
    initial_temperature: float = 1.0
    decay: float = 0.997
    schedule: Literal["exponential", "linear", "constant"] = "exponential"
    baseline: Literal["none", "mean", "zscore", "question"] = "question"
    window: int = 256
    question_window: int = 20
    gradient_at: Literal["sampling", "one"] = "sampling"
    update: Literal["reinforce", "released", "released_flipped"] = "reinforce"
    reward_shift: float = 0.0
    entropy_bonus: float = 0.05
    heads: tuple[str, ...] = HEADS
    save_every: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        if self.initial_temperature <= 0 or not 0 < self.decay <= 1:
            raise ValueError(
                f"initial_temperature must be above 0 and decay in (0, 1], got {self.initial_temperature} "
                f"and {self.decay}"
            )
        if unknown := set(self.heads) - {*HEADS, "joint"}:
            raise ValueError(f"unknown heads {sorted(unknown)}; there are {', '.join(HEADS)}")

    def temperature(self, step: int) -> float:
        """The exploration temperature of an update."""
        if self.schedule == "linear":
            return linear_temperature(step, self.initial_temperature)
        decay = self.decay if self.schedule == "exponential" else 1.0
        return annealed_temperature(step, self.initial_temperature, decay)


class BanditTrainer:
    """Trains a policy on questions, given by their embeddings (N, D), with the rewards of an environment.

    Every decision is kept with its propensity. Given a run, it saves and resumes: all randomness comes from
    the seed and the number of the update, so a resumed run is the same run.
    """

    def __init__(
        self,
        policy: Policy,
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
        self._kept: dict[int, deque[float]] = {}  # the last rewards of each question
        self.history: list[dict[str, float]] = []
        self.interrupted = False
        if run is not None and (run.checkpoint / "policy.safetensors").exists():
            self._load()

    def train(
        self, *, stop_at: int | None = None, say: Callable[[str], None] | None = None
    ) -> list[dict[str, float]]:
        """Run the updates that are left, a row each. Ctrl-C saves and raises KeyboardInterrupt."""
        last = min(stop_at or self.config.updates, self.config.updates)
        begun = time.monotonic()
        try:
            with self._stoppable():
                while self.step < last and not self.interrupted:
                    row = self.update()
                    due = self.step % max(1, last // 10) == 0 or self.step == last
                    if say is not None and due:
                        say(
                            f"update {self.step:>4} of {last}   reward {row['reward']:.3f}   "
                            f"tau {row['tau']:.2f}   {time.monotonic() - begun:4.0f} s"
                        )
                    if self.step % self.config.save_every == 0:
                        self.save()
        finally:
            self.save()
        if self.interrupted:
            raise KeyboardInterrupt(f"saved at update {self.step}; the same call goes on from there")
        return self.history

    def update(self) -> dict[str, float]:
        """One update: draw questions, choose configurations, ask, learn from what was answered."""
        config, tau = self.config, self.config.temperature(self.step)
        seed = config.seed * 1_000_003 + self.step
        generator = torch.Generator().manual_seed(seed)
        questions = torch.randint(len(self.embeddings), (config.batch_size,), generator=generator)
        embeddings = self.embeddings[questions]
        chosen = choose(self.policy, embeddings, heads=config.heads, temperature=tau, seed=seed)
        rewards = self.environment(questions, chosen.actions, seed)
        answered = ~rewards.isnan()
        if not answered.any():
            raise NoAnswersError(
                f"none of the {len(rewards)} requests of update {self.step + 1} was answered; see what the "
                "server says, then call train again: it goes on from here"
            )
        shifted = rewards[answered] + config.reward_shift
        advantages = self._advantages(questions[answered], shifted)
        logits = {
            head: values[answered]
            for head, values in self.policy(embeddings).items()
            if head in (*config.heads, "joint")
        }
        actions = {head: chosen.choices[head][answered] for head in logits}
        if config.update.startswith("released"):
            sign = 1 if config.update == "released" else -1
            loss = sign * released_loss(logits, actions, advantages)
        else:
            at = tau if config.gradient_at == "sampling" else 1.0
            loss = reinforce_loss(logits, actions, advantages, temperature=at)
            for values in logits.values():
                loss = loss - config.entropy_bonus * entropy(boltzmann_probabilities(values, at)).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return self._record(questions, chosen, rewards, logits, tau, loss.item())

    def _advantages(self, questions: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
        """Rewards (B,) less the baseline, from what came before; at first from the batch itself."""
        config = self.config
        if config.baseline == "none":
            return rewards
        past = [d["reward"] for d in self.decisions[-config.window :] if d["reward"] is not None]
        window = torch.tensor(past) + config.reward_shift if past else rewards
        if config.baseline == "question":
            means = {q: sum(kept) / len(kept) for q, kept in self._kept.items()}
            usual = window.mean().item() - config.reward_shift
            baseline = torch.tensor([means.get(q, usual) for q in questions.tolist()])
            return rewards - baseline - config.reward_shift
        centred = rewards - window.mean()
        if config.baseline == "mean":
            return centred
        return centred / (window.std(unbiased=False) + 1e-8)

    def _keep(self, question: int, reward: float | None) -> None:
        if reward is not None:
            self._kept.setdefault(question, deque(maxlen=self.config.question_window)).append(reward)

    def _record(
        self,
        questions: torch.Tensor,
        chosen: Decisions,
        rewards: torch.Tensor,
        logits: Mapping[str, torch.Tensor],
        tau: float,
        loss: float,
    ) -> dict[str, float]:
        self.step += 1
        columns = {
            "question": questions.tolist(),
            "action": chosen.actions.tolist(),
            "propensity": chosen.propensity.tolist(),
            "reward": [None if math.isnan(reward) else reward for reward in rewards.tolist()],
        }
        heads = {head: p.tolist() for head, p in chosen.propensities.items()}
        for index in range(len(questions)):
            decision = {name: values[index] for name, values in columns.items()}
            decision["propensities"] = {head: values[index] for head, values in heads.items()}
            self.decisions.append({"step": self.step, **decision})
            self._keep(decision["question"], decision["reward"])
        row = {
            "step": self.step,
            "loss": loss,
            "reward": rewards.nanmean().item(),
            "tau": tau,
            "answered": (~rewards.isnan()).float().mean().item(),
        }
        for head, values in logits.items():
            row[f"entropy/{head}"] = entropy(boltzmann_probabilities(values.detach(), tau)).mean().item()
        self.history.append(row)
        if self.run is not None:
            self.run.log(self.step, {key: value for key, value in row.items() if key != "step"})
        return row

    # -- saving and resuming

    def save(self) -> None:
        """Write policy, optimizer and decisions to the run's checkpoint; each file in one step."""
        if self.run is None:
            return
        folder = self.run.checkpoint
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"policy.{name}": value.contiguous() for name, value in self.policy.state_dict().items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {
                f"optimizer.{number}.{name}": torch.as_tensor(value).clone() for name, value in state.items()
            }
        lines = "".join(json.dumps(decision) + "\n" for decision in self.decisions)
        (folder / "decisions.new").write_text(lines, encoding="utf-8")
        (folder / "decisions.new").replace(folder / "decisions.jsonl")
        save_file(tensors, folder / "policy.new", metadata={"step": str(self.step)})
        (folder / "policy.new").replace(folder / "policy.safetensors")

    def _load(self) -> None:
        """Go on where the checkpoint stands; what was logged after it is dropped."""
        folder = self.run.checkpoint
        with safe_open(folder / "policy.safetensors", framework="pt") as file:
            self.step = int(file.metadata()["step"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        states: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, number, field = name.split(".")
                states.setdefault(int(number), {})[field] = tensor
        self.policy.load_state_dict(
            {name.removeprefix("policy."): t for name, t in tensors.items() if name.startswith("policy.")}
        )
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})
        lines = (folder / "decisions.jsonl").read_text(encoding="utf-8").splitlines()
        self.decisions = [row for row in map(json.loads, lines) if row["step"] <= self.step]
        for row in self.decisions:
            self._keep(row["question"], row["reward"])
        self.run.rewind(self.step)
        self.history = self.run.metrics()

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """The first Ctrl-C ends training after the update under way."""

        def stop(number: int, frame: Any) -> None:
            self.interrupted = True

        self.interrupted = False
        try:
            old = signal.signal(signal.SIGINT, stop)
        except ValueError:  # not in the main thread: Ctrl-C then ends the process as usual
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, old)


def choose(
    policy: Policy,
    embeddings: torch.Tensor,
    *,
    heads: Sequence[str] = HEADS,
    temperature: float | None = None,
    seed: int = 0,
) -> Decisions:
    """Like `decide`, but heads that are not named choose uniformly at random (the ablations)."""
    chosen = decide(policy, embeddings, temperature=temperature, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for head in (head for head in chosen.choices if head not in (*heads, "joint")):
        size = policy.action_space.sizes[head]
        chosen.choices[head] = torch.randint(size, (len(embeddings),), generator=generator)
        chosen.propensities[head] = torch.full((len(embeddings),), 1 / size)
    if "joint" in chosen.choices:
        return chosen
    return chosen._replace(actions=policy.action_space.join(chosen.choices))
