"""Many trainings of the configuration policy at once: the rules of `BanditTrainer`, over a stack of seeds.

An update after every answer is 76,800 updates of a tiny network: alone, each seed would take minutes. Here
all runs of a stack make their updates together, in NumPy, with the gradient of equation (5) by hand. Runs may
differ in seed, questions, learning rate and entropy bonus. A test holds an update against `BanditTrainer`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from lib.bandit.actions import HEADS
from lib.bandit.learner import ConfigurationPolicy
from lib.bandit.training import BanditConfig
from lib.studies.bandits import SPACE, QuestionSet

CHUNK = 2048  # updates whose random numbers are drawn ahead
SIZES = np.array(list(SPACE.sizes.values()))[:, None, None]  # of the three heads
WIDTH = 32  # a quarter of `bandits.make_policy`: as good here, and four times as fast


class Network:
    """S policies: a trunk, and three heads of one or more layers, all in one matrix (S, P).

    Heads with fewer values than the largest are filled up with logits of minus infinity.
    """

    def __init__(self, seeds: Sequence[int], dim: int, head_layers: int):
        largest = int(SIZES.max())
        shapes: list[tuple[int, ...]] = [(dim, WIDTH), (1, WIDTH)]
        for layer in range(head_layers):
            out = largest if layer == head_layers - 1 else WIDTH
            shapes += [(3, WIDTH, out), (3, 1, out)]
        ends = np.cumsum([0, *(int(np.prod(shape)) for shape in shapes)])
        self.flat, self.gradient = np.zeros((2, len(seeds), ends[-1]), np.float32)
        self.layers, self.slopes = (
            [m[:, a:b].reshape(-1, *s) for a, b, s in zip(ends[:-1], ends[1:], shapes, strict=True)]
            for m in (self.flat, self.gradient)
        )
        for number, seed in enumerate(seeds):
            self._fill(number, seed, dim, head_layers)
        self.missing = np.where(np.arange(largest) >= SIZES, -np.inf, 0).astype(np.float32)

    def _fill(self, number: int, seed: int, dim: int, head_layers: int) -> None:
        """Start as the policy of this seed starts."""
        torch.manual_seed(seed)
        policy = ConfigurationPolicy(dim, SPACE, width=WIDTH, head_layers=head_layers)
        start = {name: weight.detach().numpy() for name, weight in policy.named_parameters()}
        self.layers[0][number] = start["trunks.0.0.weight"].T
        self.layers[1][number] = start["trunks.0.0.bias"]
        for place, head in enumerate(HEADS):
            for layer in range(head_layers):
                weight, bias = (start[f"heads.{head}.{2 * layer}.{part}"] for part in ("weight", "bias"))
                self.layers[2 + 2 * layer][number, place, :, : len(bias)] = weight.T
                self.layers[3 + 2 * layer][number, place, 0, : len(bias)] = bias

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Embeddings (S, B, D) -> logits (S, 3, B, K), and what each layer read."""
        inputs = [x, np.tanh(x @ self.layers[0] + self.layers[1])[:, None]]
        for layer in range(2, len(self.layers), 2):
            values = inputs[-1] @ self.layers[layer] + self.layers[layer + 1]
            inputs.append(np.maximum(values, 0))
        return values + self.missing, inputs[:-1]

    def backward(self, slope: np.ndarray, inputs: list[np.ndarray]) -> None:
        """Write the gradient, given that of the logits (S, 3, B, K)."""
        for layer in range(len(self.layers) - 2, 0, -2):
            read = inputs[layer // 2]
            _outer(read, slope, self.slopes[layer])
            self.slopes[layer + 1][...] = slope.sum(-2, keepdims=True)
            slope = slope @ self.layers[layer].swapaxes(-1, -2)
            if layer > 2:
                slope *= read > 0
        trunk = slope.sum(1) * (1 - inputs[1][:, 0] ** 2)  # the trunk gets the sum over the heads
        _outer(inputs[0], trunk, self.slopes[0])
        self.slopes[1][...] = trunk.sum(-2, keepdims=True)


def _outer(read: np.ndarray, slope: np.ndarray, out: np.ndarray) -> None:
    """The sum over a batch of outer products, (..., B, D) and (..., B, K) -> (..., D, K)."""
    if slope.shape[-2] == 1:  # several times faster than a matrix product with inner size 1
        np.multiply(read.swapaxes(-1, -2), slope, out=out)
    else:
        np.matmul(read.swapaxes(-1, -2), slope, out=out)


class Stack:
    """S runs: `configs` agree in all but seed, learning_rate and entropy_bonus; `sets` are trained on.

    `trials`: how many answers to one question follow one another, questions in their order, as in
    Algorithm 1 and in the released code; None draws questions at random. `held` (S, 3) are values of heads
    that do not choose, -1 where a head does.
    """

    def __init__(
        self,
        configs: Sequence[BanditConfig],
        sets: Sequence[QuestionSet],
        *,
        head_layers: int = 1,
        trials: int | None = None,
        held: np.ndarray | None = None,
    ):
        own: dict[str, Any] = {"seed": 0, "learning_rate": 0.01, "entropy_bonus": 0.0}
        if len({replace(config, **own) for config in configs}) > 1:
            raise ValueError("the runs of a stack may differ in seed, learning_rate and entropy_bonus alone")
        self.config, self.trials, self.step = configs[0], trials, 0
        self.embeddings = np.stack([one.embeddings.numpy() for one in sets])
        self.contexts = np.stack([one.surface.contexts.numpy() for one in sets])
        self.values = np.stack([one.surface.values.numpy() for one in sets])
        seeds = [config.seed for config in configs]
        self.network = Network(seeds, self.embeddings.shape[2], head_layers)
        self.streams = [np.random.default_rng(seed) for seed in seeds]
        self.optimizer = self._optimizer([config.learning_rate for config in configs])
        self.bonus = np.array([[[[c.entropy_bonus]]] for c in configs], np.float32)
        self.runs = np.arange(len(configs))[:, None]
        self.held = (np.full((len(configs), 3), -1) if held is None else held)[..., None]
        self.recent = np.full((len(configs), self.config.window), np.nan, np.float32)
        self.of_question = np.full((*self.contexts.shape, self.config.question_window), np.nan, np.float32)
        self.times = np.zeros(self.contexts.shape, int)

    def _optimizer(self, rates: Sequence[float]) -> torch.optim.Optimizer:
        """PyTorch's own, on the rows of the stack, each run at its rate; the memory is shared with NumPy."""
        groups: dict[float, list[torch.Tensor]] = {rate: [] for rate in rates}
        for rate, row, gradient in zip(rates, self.network.flat, self.network.gradient, strict=True):
            weights = torch.from_numpy(row)
            weights.grad = torch.from_numpy(gradient)
            groups[rate].append(weights)
        make = torch.optim.Adam if self.config.optimizer == "adam" else torch.optim.SGD
        return make([{"params": rows, "lr": rate} for rate, rows in groups.items()], fused=True)

    def train(self, until: int) -> None:
        """Updates until there were this many, with random numbers drawn ahead for each run."""
        while self.step < until:
            shape = (min(CHUNK, until - self.step), 5, self.config.batch_size)
            drawn = np.stack([stream.random(shape, dtype=np.float32) for stream in self.streams], axis=1)
            for numbers in drawn:
                self.update(self._questions(numbers[:, 0]), numbers[:, 1:4], numbers[:, 4])

    def _questions(self, numbers: np.ndarray) -> np.ndarray:
        count = self.contexts.shape[1]
        if self.trials is None:
            return np.minimum((numbers * count).astype(int), count - 1)
        first = self.step * self.config.batch_size
        order = (np.arange(first, first + self.config.batch_size) // self.trials) % count
        return np.broadcast_to(order, numbers.shape)

    def temperature(self) -> float:
        """Of exploration; a linear schedule counts questions, as the released code does."""
        linear = self.trials is not None and self.config.schedule == "linear"
        return self.config.temperature(self.step // (self.trials or 1) if linear else self.step)

    def update(self, questions: np.ndarray, draws: np.ndarray, luck: np.ndarray) -> None:
        """One update: questions (S, B), uniform numbers for the heads (S, 3, B) and the rewards (S, B)."""
        tau = self.temperature()
        logits, inputs = self.network.forward(self.embeddings[self.runs, questions])
        probs = softmax(logits / tau)
        choices = np.minimum((probs.cumsum(-1) < draws[..., None]).sum(-1), SIZES[:, 0] - 1)
        choices = np.where(self.held < 0, choices, self.held)
        chance = self.values[self.runs, self.contexts[self.runs, questions], joined(choices)]
        rewards = (luck < chance).astype(np.float32)
        advantages = self._advantages(questions, rewards)[:, None, :, None]
        slope = self._slope(logits, probs, choices[..., None], advantages, tau) * (self.held[..., None] < 0)
        self.network.backward(slope / rewards.shape[1], inputs)
        self.optimizer.step()
        self.step += 1
        self._keep(questions, rewards)

    def _slope(
        self, logits: np.ndarray, probs: np.ndarray, taken: np.ndarray, advantages: np.ndarray, tau: float
    ) -> np.ndarray:
        """The gradient of a decision's loss in its logits: (5) and the bonus, or the released rule."""
        config = self.config
        chosen = (np.arange(logits.shape[-1]) == taken).astype(np.float32)
        if config.update.startswith("released"):
            sign = 1 if config.update == "released" else -1
            return sign * chosen * advantages / (probs + 1e-8)
        at = tau if config.gradient_at == "sampling" else 1.0
        shares = probs if at == tau else softmax(logits / at)
        slope = -advantages * (chosen - shares) / at
        if self.bonus.any():
            logs = np.log(np.maximum(shares, 1e-12))
            entropy = -(shares * logs).sum(-1, keepdims=True)
            slope += self.bonus / at * shares * (logs + entropy)
        return slope

    def _advantages(self, questions: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        """Rewards (S, B) less the baseline, as `BanditTrainer` has it."""
        config = self.config
        if config.baseline == "none":
            return rewards
        if config.baseline == "zscore":  # an answer an update: its own reward belongs to the window
            window = np.concatenate([self.recent[:, 1:], rewards], 1)
            centred = window - np.nanmean(window, 1, keepdims=True)
            return centred[:, -1:] / (np.sqrt(np.nanmean(centred**2, 1, keepdims=True)) + 1e-8)
        seen = ~np.isnan(self.recent)
        past = np.where(seen, self.recent, 0).sum(1) / np.maximum(seen.sum(1), 1)
        usual = np.broadcast_to((past if self.step else rewards.mean(1))[:, None], rewards.shape)
        if config.baseline == "mean":
            return rewards - usual
        of_question, times = (of[self.runs, questions] for of in (self.of_question, self.times))
        sums = np.where(np.isnan(of_question), 0, of_question).sum(-1)
        own = sums / np.clip(times, 1, config.question_window)
        return rewards - np.where(times > 0, own, usual)

    def _keep(self, questions: np.ndarray, rewards: np.ndarray) -> None:
        last = rewards[:, -self.config.window :]
        self.recent = np.concatenate([self.recent[:, last.shape[1] :], last], 1)
        if self.config.baseline == "question":
            runs = self.runs[:, 0]
            for question, reward in zip(questions.T, rewards.T, strict=True):
                place = self.times[runs, question] % self.config.question_window
                self.of_question[runs, question, place] = reward
                self.times[runs, question] += 1

    def probabilities(self, embeddings: np.ndarray, *, greedy: bool) -> np.ndarray:
        """Of every action for embeddings (S, N, D), (S, N, A): greedily, or at the temperature of now."""
        logits, _ = self.network.forward(embeddings)
        best = np.where(self.held < 0, logits.argmax(-1), self.held)
        each = (np.arange(logits.shape[-1]) == best[..., None]).astype(np.float32)
        if not greedy:
            each = softmax(logits / self.temperature())
        heads = [each[:, place, :, :size] for place, size in enumerate(SIZES.flatten())]
        joint = np.einsum("sni,snt,snk->snitk", *heads)
        return joint.reshape(*joint.shape[:2], -1)

    def greedy(self, run: int, test: QuestionSet) -> torch.Tensor:
        """The actions of one run on test questions, (N,)."""
        everywhere = np.broadcast_to(test.embeddings.numpy(), (len(self.runs), *test.embeddings.shape))
        return torch.from_numpy(self.probabilities(everywhere, greedy=True)[run].argmax(-1))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last dimension."""
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def joined(choices: np.ndarray) -> np.ndarray:
    """Choices of the heads (S, 3, B) as indices of actions (S, B)."""
    instruction, temperature, steps = choices.swapaxes(0, 1)
    return (instruction * SIZES[1, 0, 0] + temperature) * SIZES[2, 0, 0] + steps


def learning_curves(
    configs: Sequence[BanditConfig],
    sets: Sequence[tuple[QuestionSet, QuestionSet]],
    answers: Sequence[int],
    *,
    samples: bool = False,
    **options: Any,
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Train a stack; at each number of answers: expected reward and tokens on the test questions, (S,) each.

    `samples`: the policy samples at test time too, as the released code's does.
    """
    stack = Stack(configs, [train for train, _ in sets], **options)
    embeddings = np.stack([test.embeddings.numpy() for _, test in sets])
    values = np.stack([test.surface.values.numpy()[test.surface.contexts] for _, test in sets])
    costs = np.stack([test.tokens.numpy()[test.surface.contexts] for _, test in sets])
    for count in answers:
        stack.train(count // stack.config.batch_size)
        chosen = stack.probabilities(embeddings, greedy=not samples)
        yield count, (chosen * values).sum(-1).mean(-1), (chosen * costs).sum(-1).mean(-1)
