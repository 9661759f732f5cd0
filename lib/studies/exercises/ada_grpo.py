"""Your turn in notebook 03: counts, advantages, scale and decay, scaled rewards, loss, KL; exercises."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import torch

from lib.formats import ReasoningFormat
from lib.methods.ada_grpo import diversity_scale
from lib.methods.ada_grpo import format_counts as library_counts
from lib.methods.ada_grpo import scale_rewards as library_scaled
from lib.methods.grpo import clipped_loss, group_relative_advantages, grpo_loss, kl_estimate, masked_mean
from lib.studies.exercises.ada_grpo_longer import priced
from lib.studies.exercises.core import Cases, Check, by_hand

__all__ = [
    "advantages",
    "alpha",
    "by_hand",
    "format_counts",
    "group_of_four",
    "kl",
    "loss",
    "lucky_guess",
    "priced",
    "scaled_rewards",
]

Formats = Sequence[Sequence[ReasoningFormat | None]]
DIRECT, SHORT_COT, CODE, LONG_COT = ReasoningFormat
NAMES = {"D": DIRECT, "K": SHORT_COT, "C": CODE, "L": LONG_COT, "-": None}


def _groups(*letters: str) -> list[list[ReasoningFormat | None]]:
    """Groups written as in a table: LLLLKKCD, and - for a response without a format."""
    return [[NAMES[letter] for letter in group] for group in letters]


def _table(*rows: str) -> torch.Tensor:
    return torch.tensor([[float(digit) for digit in row] for row in rows])


# ---- how many share a format ---------------------------------------------------------------------


def _per_group(
    formats: Formats, count: Callable[[Sequence[ReasoningFormat | None]], list[int]]
) -> torch.Tensor:
    return torch.tensor([count(group) for group in formats])


def _over_all(formats: Formats) -> torch.Tensor:
    found = Counter(format for group in formats for format in group)
    return _per_group(formats, lambda group: [found[format] for format in group])


format_counts = Check(
    "format_counts",
    library_counts,
    lambda: [
        (_groups("LLLLKKCD"),),
        (_groups("LLLD"),),
        (_groups("LLLL", "DKCL"),),
        (_groups("L--D", "DDLL"),),
    ],
    {
        "This counts over the whole batch. A response is compared with its own group.": _over_all,
        "That is how many formats the group has. F is how many responses share the format of this one.": (
            lambda formats: _per_group(formats, lambda group: [len(set(group))] * len(group))
        ),
        "That counts up as it goes. All responses with the same format have the same F.": (
            lambda formats: _per_group(
                formats, lambda group: [group[: place + 1].count(f) for place, f in enumerate(group)]
            )
        ),
        "A response without a format is counted, too: None is one more kind, and F is never 0.": (
            lambda formats: _per_group(
                formats, lambda group: [0 if f is None else list(group).count(f) for f in group]
            )
        ),
        "That is the share F / G. The number itself is wanted.": (
            lambda formats: library_counts(formats) / len(formats[0])
        ),
        "These are the others with the same format. The response itself is counted, too.": (
            lambda formats: library_counts(formats) - 1
        ),
    },
)

# ---- advantages ----------------------------------------------------------------------------------


def _standardised(rewards: torch.Tensor, *, correction: int = 1, eps: float = 1e-6) -> torch.Tensor:
    centred = rewards - rewards.mean(1, keepdim=True)
    return centred / (rewards.std(1, correction=correction, keepdim=True) + eps)


advantages = Check(
    "advantages",
    group_relative_advantages,
    lambda: [
        (_table("11110101"),),
        (_table("1000"),),
        (_table("10", "01"),),
        (_table("1100", "1110"),),
        (_table("2228", "0004"),),
        (_table("1111", "0000", "1000"),),
    ],
    {
        "This divides by the population's deviation (n); GRPO here uses the sample's (n - 1).": (
            partial(_standardised, correction=0)
        ),
        "Equal rewards have a deviation of 0, and this divides by it: add eps below the line.": partial(
            _standardised, eps=0.0
        ),
        "Mean and deviation are those of the whole batch. Each group, a row, has its own.": (
            lambda rewards: (rewards - rewards.mean()) / (rewards.std() + 1e-6)
        ),
        "Mean and deviation are taken down the columns, over prompts. A group is a row.": (
            lambda rewards: _standardised(rewards.T).T
        ),
        "The deviation is that of the whole batch. Each group has its own.": (
            lambda rewards: (rewards - rewards.mean(1, keepdim=True)) / (rewards.std() + 1e-6)
        ),
        "The mean is taken away, and the division by the deviation is missing.": (
            partial(group_relative_advantages, scale="none")
        ),
        "Nothing is taken away. An advantage says how much better than the group's mean.": (
            lambda rewards: rewards / (rewards.std(1, keepdim=True) + 1e-6)
        ),
        "The sign: what is better than the mean has a positive advantage.": lambda rewards: (
            -_standardised(rewards)
        ),
        "This divides by the variance. The deviation is its square root.": lambda rewards: (
            (rewards - rewards.mean(1, keepdim=True)) / (rewards.var(1, keepdim=True) + 1e-6)
        ),
        "An eps of 1e-4 is TRL's. ARM's code has 1e-6.": partial(_standardised, eps=1e-4),
    },
)

# ---- the scale -----------------------------------------------------------------------------------


def _shrunk(counts: torch.Tensor, size: int, left: float) -> torch.Tensor:
    return 1 + left * (size / counts - 1)


alpha = Check(
    "alpha",
    diversity_scale,
    lambda: (
        [(torch.tensor([[1, 2, 4, 8]]), 8, step, 171) for step in (0, 57, 86, 170, 171)]
        + [(torch.tensor([[3, 3, 3, 1], [4, 4, 4, 4]]), 4, 10, 40)]
    ),
    {
        "There is no decay: alpha is still G / F at the end. Multiply by equation (3).": (
            lambda counts, size, step, total: size / counts
        ),
        "That is the decay of (3) alone. alpha is G / F times it.": (
            lambda counts, size, step, total: counts / size * diversity_scale(counts, size, step, total)
        ),
        "This decays to 0, and takes the rewards with it. At t = T alpha is 1.": (
            lambda counts, size, step, total: size / counts * 0.5 * (1 + math.cos(math.pi * step / total))
        ),
        "This falls along a line. (3) is half a cosine: slow at first and at the end.": (
            lambda counts, size, step, total: _shrunk(counts, size, 1 - step / total)
        ),
        "That is a whole period of the cosine: alpha comes back at the end. (3) has pi t / T, half of one.": (
            lambda counts, size, step, total: _shrunk(
                counts, size, 0.5 * (1 + math.cos(2 * math.pi * step / total))
            )
        ),
        "F / G is the share of a format, and pays the frequent. The scale is G / F.": (
            lambda counts, size, step, total: (
                _shrunk(size / counts, 1, 0.5 * (1 + math.cos(math.pi * step / total))) / size
            )
        ),
        "The 1/2 of (3) is missing: 1 + cos goes from 2 to 0.": (
            lambda counts, size, step, total: _shrunk(counts, size, 1 + math.cos(math.pi * step / total))
        ),
        "pi is missing in the cosine, so the scale never comes down to 1.": (
            lambda counts, size, step, total: _shrunk(counts, size, 0.5 * (1 + math.cos(step / total)))
        ),
    },
)

# ---- scaled rewards ------------------------------------------------------------------------------


def _scales(formats: Formats, step: float, total: float) -> torch.Tensor:
    return diversity_scale(library_counts(formats), len(formats[0]), step, total)


def _known(formats: Formats) -> torch.Tensor:
    return torch.tensor([[format is not None for format in group] for group in formats])


scaled_rewards = Check(
    "scaled_rewards",
    library_scaled,
    lambda: [
        (_table("11111111"), _groups("LLLLKKCD"), 0, 171),
        (_table("11110101"), _groups("LLLLLCCD"), 86, 171),
        (_table("1101", "0001"), _groups("LLLD", "DDDL"), 10, 40),
        (_table("1111"), _groups("L-LD"), 0, 40),
    ],
    {
        "The scale is added. A wrong answer would be paid for being rare: multiply, and 0 stays 0.": (
            lambda rewards, formats, step, total: torch.where(
                _known(formats), rewards + _scales(formats, step, total), rewards
            )
        ),
        "A response without a format is scaled, too. To be unreadable must not pay for being rare.": (
            lambda rewards, formats, step, total: rewards * _scales(formats, step, total)
        ),
        "The decay is left out: this scales by G / F at every step.": (
            lambda rewards, formats, step, total: library_scaled(rewards, formats, step, total, decay=False)
        ),
        "This scales advantages. Ada-GRPO scales rewards, and GRPO makes advantages of them afterwards.": (
            lambda rewards, formats, step, total: library_scaled(
                group_relative_advantages(rewards), formats, step, total
            )
        ),
        "That is alpha alone. It is a factor of the reward.": (
            lambda rewards, formats, step, total: _scales(formats, step, total)
        ),
        "A response without a format keeps its reward; here it loses it.": (
            lambda rewards, formats, step, total: (
                library_scaled(rewards, formats, step, total) * _known(formats)
            )
        ),
    },
)

# ---- the loss ------------------------------------------------------------------------------------


def _steps() -> Cases:
    random = torch.Generator().manual_seed(0)
    now, old = (-torch.rand(4, 6, generator=random) for _ in range(2))
    mask = (torch.arange(6) < torch.tensor([[6], [3], [5], [1]])).float()
    mixed = torch.tensor([1.5, -0.5, -1.0, 0.3])
    return [
        (now, old, mixed, mask),
        (now, now, mixed, mask),
        (now, old, mixed, torch.ones(4, 6)),
        (old, now, -mixed, mask),
    ]


def _clipped(now: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, *, how: str) -> torch.Tensor:
    ratio, pay = torch.exp(now - old), advantages[:, None]
    clipped = ratio.clamp(0.8, 1.2) * pay
    return {
        "max": -torch.max(ratio * pay, clipped),
        "clipped alone": -clipped,
        "not clipped": -ratio * pay,
        "ratios alone": -torch.min(ratio, ratio.clamp(0.8, 1.2)) * pay,
        "one side": -torch.min(ratio * pay, ratio.clamp(max=1.2) * pay),
        "no exp": -torch.min((now - old) * pay, (now - old).clamp(0.8, 1.2) * pay),
    }[how]


def _loss(
    now: torch.Tensor, old: torch.Tensor, pay: torch.Tensor, mask: torch.Tensor, *, how: str
) -> torch.Tensor:
    return masked_mean(_clipped(now, old, pay, how=how), mask)


loss = Check(
    "loss",
    grpo_loss,
    _steps,
    {
        "The sign: training makes the loss smaller, so it is minus what is to grow.": (
            lambda *given: -grpo_loss(*given)
        ),
        "max in place of min: the smaller of the two counts, so that nothing is gained beyond the clip.": (
            partial(_loss, how="max")
        ),
        "Only the clipped term is there. Without the min a step that went too far wrong has no way back.": (
            partial(_loss, how="clipped alone")
        ),
        "Nothing is clipped.": partial(_loss, how="not clipped"),
        "The ratio is upside down: now over then, so exp(log_probs - old_log_probs).": (
            lambda now, old, pay, mask: grpo_loss(old, now, pay, mask)
        ),
        "A difference of log-probs is the log of the ratio: exp is missing.": partial(_loss, how="no exp"),
        "That is the mean over responses of each one's mean. (5) weighs every token the same.": (
            lambda *given: grpo_loss(*given, group_size=1)
        ),
        "Padding is counted in the denominator: divide by the sum of the mask.": (
            lambda now, old, pay, mask: (clipped_loss(torch.exp(now - old), pay) * mask).mean()
        ),
        "The mask is not used: padding has no loss.": (
            lambda now, old, pay, mask: clipped_loss(torch.exp(now - old), pay).mean()
        ),
        "min is taken of ratios, and a negative advantage turns that round: multiply first, then min.": (
            partial(_loss, how="ratios alone")
        ),
        "The clip has two sides: below 1 - epsilon it matters where the advantage is negative.": (
            partial(_loss, how="one side")
        ),
        "There is no ratio: this is the plain policy gradient, advantage times log-prob.": (
            lambda now, old, pay, mask: masked_mean(-now * pay[:, None], mask)
        ),
    },
)

# ---- the KL term ---------------------------------------------------------------------------------

kl = Check(
    "kl",
    kl_estimate,
    lambda: [
        (torch.tensor([[-1.0, -2.0, -0.5]]), torch.tensor([[-1.0, -1.0, -1.5]])),
        (torch.tensor([[-0.1], [-3.0]]), torch.tensor([[-3.0], [-0.1]])),
    ],
    {
        "That is k1, the plain difference of log-probs: right on average, and negative half of the time.": (
            lambda now, reference: now - reference
        ),
        "That is k2, half of the square. k3 is exp(d) - d - 1.": (
            lambda now, reference: (now - reference) ** 2 / 2
        ),
        "d is upside down: the tokens come from the policy, so d = reference - policy.": (
            lambda now, reference: kl_estimate(reference, now)
        ),
        "Where both agree the estimate is 0: subtract 1.": (
            lambda now, reference: kl_estimate(now, reference) + 1
        ),
        "That is the ratio. d must be taken away, too.": lambda now, reference: torch.exp(reference - now),
        "The tokens are drawn from the policy, so its probability is not multiplied in once more.": (
            lambda now, reference: torch.exp(now) * (now - reference)
        ),
    },
)

# ---- by hand: exercises 1 and 2 ------------------------------------------------------------------


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(value, 2) for value in values.flatten().tolist()]


FOUR = _table("1101"), _groups("LLLD")

group_of_four = Check(
    "group_of_four",
    lambda: _rounded(group_relative_advantages(library_scaled(*FOUR, 0, 1))),
    lambda: [()],
    {
        "That is plain GRPO: the scale is missing.": lambda: _rounded(group_relative_advantages(FOUR[0])),
        "These are the scaled rewards. Take the mean away and divide by the deviation.": (
            lambda: _rounded(library_scaled(*FOUR, 0, 1))
        ),
        "The deviation is that of a sample: divide the sum of squares by 3.": (
            lambda: _rounded(_standardised(library_scaled(*FOUR, 0, 1), correction=0))
        ),
        "The wrong long CoT is not counted. F counts all responses in a format, right or wrong.": (
            lambda: _rounded(group_relative_advantages(torch.tensor([[2.0, 2.0, 0.0, 4.0]])))
        ),
    },
)


def _guesses(scaled: bool, chances: tuple[float, float] = (0.9, 0.1)) -> float:
    """The mean advantage of a lone direct answer beside seven right long CoT, by its chance to be right."""
    groups = _table("11111110", "11111111").double()
    rewards = library_scaled(groups, _groups("LLLLLLLD") * 2, 0, 1) if scaled else groups
    return float(group_relative_advantages(rewards)[:, -1] @ torch.tensor(chances).double())


lucky_guess = Check(
    "lucky_guess",
    lambda: [round(_guesses(False), 2), round(_guesses(True), 2)],
    lambda: [()],
    {
        "That is the advantage of a guess that is right. Nine times in ten it is wrong.": (
            lambda: [round(_guesses(scaled, (0.0, 1.0)), 2) for scaled in (False, True)]
        ),
        "That is the advantage of a guess that is wrong. One time in ten it is right.": (
            lambda: [round(_guesses(scaled, (1.0, 0.0)), 2) for scaled in (False, True)]
        ),
        "Those are mean rewards of the guess. What counts is its advantage in its group.": lambda: [0.1, 0.8],
        "GRPO's comes first, then Ada-GRPO's.": (
            lambda: [round(_guesses(True), 2), round(_guesses(False), 2)]
        ),
    },
)
