"""ARM's recipe, its Figure 2 and its Table 1 beside what notebook 03 has (numbers: arXiv 2505.20258)."""

from __future__ import annotations

import pandas as pd

from lib.dial import TIERS
from lib.formats import ReasoningFormat
from lib.methods.grpo import GRPO
from lib.runs import read_json
from lib.studies.format_choice import seeds, shares
from lib.studies.records import RUNS
from lib.studies.shared.figures import METHODS, NAMES

# What the paper says and what the released code does, where we know it.
ARM: dict[str, tuple[str, str]] = {
    "trained": ("-", "all weights"),
    "reward 1 for": ("a right answer", "a right answer, lenient format"),
    "learning rate": ("-", "1e-6, constant"),
    "weight decay": ("-", "0.01"),
    "rollout batches": ("171 (9 epochs)", "170 of 171"),
    "questions in a batch": ("1024", "1024"),
    "responses to each": ("8", "8"),
    "updates on a batch": ("mini-batches of 180", "6, the last one smaller"),
    "longest response": ("4096", "4096"),
    "temperature": ("1.0", "1.0"),
    "clip": ("epsilon", "0.2"),
    "KL to the start": ("beta", "0.001, k3 clamped"),
    "entropy bonus": ("none", "0.001"),
    "the loss's mean": ("tokens of a group", "tokens of a micro-batch"),
    "cooldown": ("-", "none"),
}
# Figure 2 of the paper, read off: direct, short CoT, code, long CoT of ARM-7B.
ARM_SHARES = {
    "easy": (0.188, 0.215, 0.219, 0.378),
    "medium": (0.014, 0.278, 0.298, 0.41),
    "hard": (0.0, 0.2, 0.233, 0.567),
}
# Table 1 of the paper, means over seven sets: accuracy and tokens of one response, and by majority of eight.
ARM_TABLE = {
    "base": (0.604, 247, 0.683, 260),
    "sft": (0.530, 347, 0.620, 323),
    "grpo": (0.732, 1173, 0.761, 1164),
    "ada_grpo": (0.720, 766, 0.759, 786),
}


WHAT = ("accuracy", "mean_tokens")


def recipe(config: GRPO) -> pd.DataFrame:
    """A configuration beside ARM's."""
    weights = {"full": "all weights"}.get(config.weights, f"{config.weights}, rank {config.lora_rank}")
    means = {"batch": "tokens of an update", "group": "tokens of a group"}
    rules = {"strict": "a right answer, strict format", "arm_training": "a right answer, lenient format"}
    here = {
        "trained": weights,
        "reward 1 for": rules.get(config.rules, config.rules),
        "learning rate": f"{config.learning_rate:g}, {config.lr_scheduler_type}",
        "weight decay": config.weight_decay,
        "rollout batches": config.batches,
        "questions in a batch": config.prompts,
        "responses to each": config.num_generations,
        "updates on a batch": config.updates,
        "longest response": config.max_completion_length,
        "temperature": config.temperature,
        "clip": config.epsilon,
        "KL to the start": config.beta or "none",
        "entropy bonus": config.entropy_coef or "none",
        "the loss's mean": means.get(config.normaliser, f"tokens of a {config.normaliser}"),
        "cooldown": f"last {config.cooldown:.0%}" if config.cooldown else "none",
    }
    rows = {name: (str(value), *ARM[name]) for name, value in here.items()}
    return pd.DataFrame(rows, index=["here", "ARM, paper", "ARM, code"]).T


def beside_arm(answers: pd.DataFrame) -> pd.DataFrame:
    """Shares of formats of Ada-GRPO on each tier, the paper's 7B model below ours."""
    found = answers.pipe(shares)
    rows = {}
    for tier in TIERS:
        part = answers[answers["tier"] == tier]
        rows[tier, f"here (seeds: {seeds(part)})"] = found.loc[tier, list(ReasoningFormat)].tolist()
        rows[tier, "ARM-7B, paper"] = list(ARM_SHARES[tier])
    return pd.DataFrame(rows, index=[NAMES[format] for format in ReasoningFormat]).T


def table_one() -> pd.DataFrame:
    """Table 1's rows here and in the paper: accuracy and tokens of one response, and by majority of eight."""
    kinds = [(who, what) for who in ("one response", "majority of 8") for what in ("accuracy", "tokens")]
    rows = {}
    for method, paper in ARM_TABLE.items():
        files = sorted((RUNS / "04_inference_modes" / method).glob("seed_*/summary.json"))
        found = [read_json(file) for file in files]
        values = [
            [one["adaptive"][what] for what in WHAT]
            + [one["majority"]["accuracy"], one["majority"]["mean_tokens"] / 8]
            for one in found
        ]
        name = METHODS.get(method, method)
        if values:
            rows[name, f"here (seeds: {len(values)})"] = pd.DataFrame(values).mean().tolist()
        rows[name, "ARM-7B, paper"] = list(paper)
    return pd.DataFrame(rows, index=pd.MultiIndex.from_tuples(kinds)).T
