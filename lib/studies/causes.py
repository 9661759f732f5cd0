"""Notebook 03's runs: GRPO and Ada-GRPO on the dial world, and what happens when one thing is changed.

python -m lib.studies.trainings 03 ada_grpo --seed 0 --ship dial-arm
python -m lib.studies.trainings 03 tuning/grpo_1e-04_0.3 --seed 10
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from lib.dial.tasks import dial_tasks
from lib.dial.world import TIERS
from lib.formats import ReasoningFormat
from lib.measure.evaluation import summary
from lib.measure.modes import answer
from lib.methods.ada_grpo import AdaGRPO, scale_rewards
from lib.methods.base import Group, MethodConfig, Progress
from lib.methods.fit import fit
from lib.methods.grpo import GRPO
from lib.policies.load import load_policy
from lib.runs import Run
from lib.studies.depths import DRAW, ask_forced, ask_freely
from lib.studies.records import SFT_SHARE, Outcome
from lib.tasks import rollout_table, task_rows


@dataclass(frozen=True, kw_only=True)
class ScaledWrong(AdaGRPO):
    """Wrong answers earn -1, and that is scaled too: a rare format is punished more for being wrong.

    Without the scale this is GRPO, whose advantages are the same for rewards of -1 and 1 as for 0 and 1.
    """

    name: ClassVar[str] = "ada_grpo_scaled_wrong"

    def shape_group(self, group: Group, progress: Progress) -> torch.Tensor:
        return scale_rewards(2 * group.ok - 1, group.mode, *progress, decay=self.decay)


@dataclass(frozen=True, kw_only=True)
class ShuffledScale(AdaGRPO):
    """A placebo: the scales of a group are handed out at random among its responses."""

    name: ClassVar[str] = "ada_grpo_shuffled_scale"

    def shape_group(self, group: Group, progress: Progress) -> torch.Tensor:
        scales = scale_rewards(torch.ones_like(group.ok), group.mode, *progress, decay=self.decay)
        return group.ok * shuffled(scales, self.seed, progress)


@dataclass(frozen=True, kw_only=True)
class ShuffledRewards(GRPO):
    """A placebo: the rewards of a group are handed out at random, so that no format earns more."""

    name: ClassVar[str] = "grpo_shuffled_rewards"

    def shape_group(self, group: Group, progress: Progress) -> torch.Tensor:
        return shuffled(group.ok, self.seed, progress)


def shuffled(values: torch.Tensor, seed: int, progress: Progress) -> torch.Tensor:
    """The values of each group (B, G) in a random order, another one at every batch."""
    generator = torch.Generator().manual_seed(1_000_003 * seed + int(progress.step))
    order = torch.rand(values.shape, generator=generator).argsort(1).to(values.device)
    return values.gather(1, order)


@dataclass(frozen=True)
class Variant:
    """A method with something changed; `depths` are those trained on, None for all tiers alike."""

    method: type[MethodConfig]
    changes: Mapping[str, Any] = field(default_factory=dict)
    depths: range | None = None


VARIANTS: dict[str, Variant] = {
    "grpo": Variant(GRPO),
    "ada_grpo": Variant(AdaGRPO),
    "grpo_easy_only": Variant(GRPO, depths=TIERS["easy"]),
    "grpo_easy_only_shuffled": Variant(ShuffledRewards, depths=TIERS["easy"]),
    "grpo_hard_only": Variant(GRPO, depths=TIERS["hard"]),
    "hard_only": Variant(AdaGRPO, depths=TIERS["hard"]),
    "grpo_beta_0.04": Variant(GRPO, {"beta": 0.04}),  # DeepSeekMath's
    "no_decay": Variant(AdaGRPO, {"decay": False}),
    "constant_rate": Variant(AdaGRPO, {"cooldown": 0.0}),
    "scaled_wrong": Variant(ScaledWrong),
    "shuffled_scale": Variant(ShuffledScale),
    **{f"without_{name}": Variant(AdaGRPO, {"without": name.value}) for name in ReasoningFormat},
}
RECIPES = [
    (1e-4, 0.3),
    (2e-4, 0.3),
    (3e-4, 0.3),
    (4e-4, 0.3),
    (4e-4, 0.0),
    (3e-4, 0.6),
    (4e-4, 0.6),
    (4e-4, 1.0),
]
TUNING = {
    f"tuning/{name}_{rate:.0e}_{cooldown}": Variant(method, {"learning_rate": rate, "cooldown": cooldown})
    for name, method in (("grpo", GRPO), ("ada_grpo", AdaGRPO))
    for rate, cooldown in RECIPES  # the last share of the updates, in which the rate falls to 0
}
FULLY = ("sft", "grpo", "ada_grpo")  # measured with each format forced as well


def train_variant(variant: Variant, seed: int, run: Run, **changes: Any) -> tuple[Any, Any, dict[str, Any]]:
    """The policy that a variant trains, its tokenizer, and what it took."""
    config = variant.method.cpu(seed=seed, **variant.changes, **changes)
    count = config.batches * config.prompts
    tasks = dial_tasks(count, split="train", seed=seed, sft_share=SFT_SHARE, depths=variant.depths)
    return fit(config, task_rows(tasks), run, say=print)


def ada_grpo(method: str, seed: int, run: Run) -> Outcome:
    """dial-sft trained by one of `VARIANTS`, or as it is ("sft"); of `TUNING`, scored on validation alone."""
    if method in TUNING:
        return tuning(method, seed, run)
    if method == "sft":
        (model, tokenizer), facts = load_policy("dial-sft"), {"config": {"base": "dial-sft"}}
    else:
        model, tokenizer, facts = train_variant(VARIANTS[method], seed, run)
    return measured(model, tokenizer, facts, seed, run, forced=method in FULLY)


def measured(
    model: Any, tokenizer: Any, facts: dict[str, Any], seed: int, run: Run, *, forced: bool
) -> Outcome:
    """The outcome of a training: what the policy answers freely, and where asked in each format."""
    numbers, answers = ask_freely((model, tokenizer), seed=seed, run=run)
    tables = {"answers": answers}
    if forced:
        numbers["forced"], tables["forced"] = ask_forced((model, tokenizer), run=run)
    return Outcome(numbers, facts, model, tokenizer, tables, log_rows=40 if forced else 16)


def tuning(method: str, seed: int, run: Run) -> Outcome:
    """A trial of a recipe: its numbers on validation questions."""
    model, tokenizer, facts = train_variant(TUNING[method], seed, run)
    tasks = dial_tasks(1200, split="validation", seed=DRAW)
    rollouts = answer((model, tokenizer), tasks, temperature=0.7, seed=seed)
    return Outcome(summary(rollout_table(rollouts, tasks)), facts, model, tokenizer, log_rows=0)
