"""Your turn in notebook 05: modes, advantage, reference, forced halves, ratio, loss; exercises 1 to 3."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import pandas as pd
import torch

from lib.methods.adaptthink import (
    VARIANTS,
    Variant,
    adaptthink_advantages,
    counted,
    importance_ratio,
    joined,
)
from lib.methods.grpo import clipped_loss, masked_mean
from lib.studies.cold_start import adaptthink_loss
from lib.studies.exercises.core import Cases, Check, by_hand

__all__ = [
    "advantages",
    "by_hand",
    "forced_starts",
    "honest_pay",
    "loss",
    "mode",
    "price_of_skipping",
    "ratio",
    "reference_accuracy",
    "weights_at_the_start",
]

# ---- modes from tokens ---------------------------------------------------------------------------


def mode_of(ids: Sequence[int], close: int, start: int) -> str:
    """How a response opens, by its first token alone; what is empty opens in no known way."""
    first = ids[0] if len(ids) else None
    return "nothinking" if first == close else "thinking" if first == start else "other"


mode = Check(
    "mode",
    mode_of,
    lambda: [
        ([58, 4, 9], 58, 71),
        ([71, 4, 58, 9], 58, 71),
        ([33, 4, 58, 9], 58, 71),
        ([33, 71, 9], 58, 71),
        ([9, 58], 58, 9),
        ([], 58, 71),
    ],
    {
        "The close tag ends every thought, so each thinking response has it, too. Look at the first token.": (
            lambda ids, close, start: (
                "nothinking" if close in ids else "thinking" if start in ids else "other"
            )
        ),
        "What does not skip does not all think by the usual word: there is a third way, other.": (
            lambda ids, close, start: "nothinking" if list(ids[:1]) == [close] else "thinking"
        ),
        "Any first word but the close tag is taken for the usual one, and an empty response for other.": (
            lambda ids, close, start: "other" if not ids else "nothinking" if ids[0] == close else "thinking"
        ),
        "The two names are the wrong way round: what begins with the close tag skips.": (
            lambda ids, close, start: mode_of(ids, start, close)
        ),
        "An empty response has no first token, and this takes it for one that skips.": (
            lambda ids, close, start: mode_of(ids or [close], close, start)
        ),
        "This looks at the last token. The mode is decided by the first.": (
            lambda ids, close, start: mode_of(ids[::-1], close, start)
        ),
    },
)

# ---- the advantage -------------------------------------------------------------------------------

Tensor = torch.Tensor


def _answers() -> Cases:
    skips = torch.tensor([True, True, False, False])
    right = torch.tensor([1.0, 0.0, 1.0, 0.0])
    references = torch.tensor([0.75] * 4), torch.zeros(4), torch.tensor([1.0, 0.5, 1.0, 0.5])
    return [(right, reference, skips, 0.05) for reference in references] + [
        (torch.ones(4), torch.ones(4), skips, 0.3)
    ]


advantages = Check(
    "advantages",
    adaptthink_advantages,
    _answers,
    {
        "The group's mean is taken away. Here it is the reference's accuracy, fixed before training.": (
            lambda rewards, reference, skips, delta: (pay := delta * skips + rewards) - pay.mean()
        ),
        "The reference's accuracy is missing.": (
            lambda rewards, reference, skips, delta: delta * skips + rewards
        ),
        "The bonus is missing: delta, where the response skips.": (
            lambda rewards, reference, skips, delta: rewards - reference
        ),
        "The bonus goes to the responses that think.": (
            lambda rewards, reference, skips, delta: delta * ~skips + rewards - reference
        ),
        "The bonus goes to right answers alone. Equation (3) pays it to wrong ones, too (exercise 2).": (
            lambda rewards, reference, skips, delta: delta * skips * rewards + rewards - reference
        ),
        "The sign of the reference: better than the reference is positive.": (
            lambda rewards, reference, skips, delta: delta * skips + reference - rewards
        ),
    },
)

# ---- the reference -------------------------------------------------------------------------------


def _share(ids: Sequence[str], correct: Sequence[bool]) -> dict[str, float]:
    return pd.Series(correct, dtype=float).groupby(list(ids)).mean().to_dict()


reference_accuracy = Check(
    "reference_accuracy",
    _share,
    lambda: [
        (["a", "a", "b", "b"], [True, True, True, False]),
        (["b", "a", "b", "a"], [False, True, False, True]),
        (["a", "a", "a", "b"], [False, True, True, True]),
        (["a", "b", "c"], [False, True, False]),
    ],
    {
        "A question that is never right is left out. Its accuracy is 0, and it matters most.": (
            lambda ids, correct: {name: share for name, share in _share(ids, correct).items() if share}
        ),
        "That is how many are right. Divide by the samples of the question.": (
            lambda ids, correct: pd.Series(correct, dtype=float).groupby(list(ids)).sum().to_dict()
        ),
        "This divides by the samples of all questions. Each question has its own.": (
            lambda ids, correct: {
                name: share * list(ids).count(name) / len(ids) for name, share in _share(ids, correct).items()
            }
        ),
        "That is the accuracy over all questions. The baseline is the question's own.": (
            lambda ids, correct: dict.fromkeys(ids, sum(correct) / len(correct))
        ),
        "Samples are taken to lie side by side, in equal numbers. Join them by the question's id.": (
            lambda ids, correct: {
                name: sum(correct[place * size : (place + 1) * size]) / size
                for names in [list(dict.fromkeys(ids))]
                for size in [len(ids) // len(names)]
                for place, name in enumerate(names)
            }
        ),
    },
)

# ---- forced halves -------------------------------------------------------------------------------


def half_and_half(groups: int, size: int, close: int, start: int) -> Tensor:
    """The first tokens forced on the responses of each group: (B, G), the half that skips first."""
    return torch.tensor([[close] * (size // 2) + [start] * (size - size // 2)] * groups)


forced_starts = Check(
    "forced_starts",
    half_and_half,
    lambda: [(1, 4, 58, 71), (3, 4, 58, 71), (2, 2, 5, 6), (2, 16, 58, 71)],
    {
        "Half of the *groups* skip, whole groups. Each group needs both modes, to compare them.": (
            lambda groups, size, close, start: torch.tensor(
                [[close]] * (groups // 2) + [[start]] * (groups - groups // 2)
            ).expand(-1, size)
        ),
        "All of them skip. Without the other half thinking is never sampled.": (
            lambda groups, size, close, start: torch.full((groups, size), close)
        ),
        "The half that skips stands last; here it stands first, as in the library.": (
            lambda groups, size, close, start: half_and_half(groups, size, start, close)
        ),
        "They alternate. The numbers are right; here the half that skips stands first.": (
            lambda groups, size, close, start: torch.tensor([[close, start] * (size // 2)] * groups)
        ),
        "One response of each group skips, not half of them.": (
            lambda groups, size, close, start: torch.tensor([[close] + [start] * (size - 1)] * groups)
        ),
    },
)

# ---- the importance ratio ------------------------------------------------------------------------


def _drawn(advantages: bool = False) -> list[Tensor]:
    """Log-probs now and then, (4, 6), a mask, and who skips; or an advantage each."""
    random = torch.Generator().manual_seed(5)
    now, old = (-torch.rand(4, 6, generator=random) for _ in range(2))
    now[:2, 0] -= 4.0  # skipping is rare
    mask = (torch.arange(6) < torch.tensor([[3], [2], [6], [5]])).float()
    last = torch.tensor([0.8, -0.6, -0.4, 0.5] if advantages else [True, True, False, False])
    return [now, old, mask, last]


def _ratios() -> Cases:
    """Padding matters where it is summed; where each token has its ratio, all are real."""
    now, old, mask, skips = _drawn()
    masks = {v: mask if v in ("geometric_mean", "sequence") else torch.ones(4, 6) for v in VARIANTS}
    return [(now, old, masks[variant], skips, variant) for variant in VARIANTS]


def _ratio(now: Tensor, old: Tensor, mask: Tensor, skips: Tensor, variant: Variant) -> Tensor:
    return importance_ratio(now, old, mask, skips, variant=variant)


def _opened(
    now: Tensor, old: Tensor, mask: Tensor, skips: Tensor, variant: Variant, *, first: float
) -> Tensor:
    """With another number for the old log-probability of a forced first token."""
    if variant != "unadjusted":
        old = torch.cat([torch.full((len(old), 1), first), old[:, 1:]], dim=1)
    return joined((now - old) * mask, mask, variant).exp()


def _renamed(
    names: dict[str, Variant], now: Tensor, old: Tensor, mask: Tensor, skips: Tensor, variant: Variant
) -> Tensor:
    return _ratio(now, old, mask, skips, names.get(variant, variant))


ratio = Check(
    "ratio",
    _ratio,
    _ratios,
    {
        "The first token was forced, and this divides by the policy's own probability. pi_IS has 1/2.": (
            lambda now, old, mask, skips, variant: joined((now - old) * mask, mask, variant).exp()
        ),
        "log_probs are logarithms: the forced token's is log(1/2), not 1/2.": partial(_opened, first=0.5),
        "Half of the responses have this forced token: its probability is 1/2, not 1.": (
            partial(_opened, first=0.0)
        ),
        "`sequence` is the product over tokens: the exponential of the *sum* of differences.": (
            partial(_renamed, {"sequence": "geometric_mean"})
        ),
        "`geometric_mean` takes the mean over the tokens of the response; this has the sum.": (
            partial(_renamed, {"geometric_mean": "sequence"})
        ),
        "Padding is counted in the mean. Divide by the sum of the mask.": (
            lambda now, old, mask, skips, variant: (
                _ratio(now, old, mask, skips, variant)
                ** (mask.sum(1, keepdim=True) / 6 if variant == "geometric_mean" else 1.0)
            )
        ),
        "The mask is not used: padding has no part in a response's ratio.": (
            lambda now, old, mask, skips, variant: _ratio(now, old, torch.ones_like(mask), skips, variant)
        ),
        "The ratio is upside down: now over then.": (
            lambda now, old, mask, skips, variant: 1 / _ratio(now, old, mask, skips, variant)
        ),
        "That is the log of the ratio: exp is missing.": (
            lambda now, old, mask, skips, variant: _ratio(now, old, mask, skips, variant).log()
        ),
        "`unadjusted` leaves the first token's old probability as the policy had it.": (
            partial(_renamed, {"unadjusted": "token"})
        ),
    },
)


# ---- the loss ------------------------------------------------------------------------------------


def _steps() -> Cases:
    now, old, mask, pay = _drawn(advantages=True)
    skips = _drawn()[3]
    cases = [(_ratio(now, old, mask, skips, v), pay, mask) for v in VARIANTS]
    return [*cases, (torch.tensor([[1.5], [0.5]]), torch.tensor([1.0, -1.0]), torch.ones(2, 3))]


def _mean(losses: Tensor, mask: Tensor) -> Tensor:
    return masked_mean(losses, counted(losses, mask), group_size=1)


def _terms(ratio: Tensor, pay: Tensor, how: str) -> Tensor:
    plain, cut = ratio * pay[:, None], ratio.clamp(0.8, 1.2) * pay[:, None]
    return {
        "max": -torch.max(plain, cut),
        "clipped alone": -cut,
        "not clipped": -plain,
        "ratios alone": -torch.min(ratio, ratio.clamp(0.8, 1.2)) * pay[:, None],
    }[how]


def _wrong(how: str, ratio: Tensor, pay: Tensor, mask: Tensor) -> Tensor:
    return _mean(_terms(ratio, pay, how), mask)


loss = Check(
    "loss",
    lambda ratio, pay, mask: _mean(clipped_loss(ratio, pay), mask),
    _steps,
    {
        "The sign: training makes the loss smaller, so it is minus what is to grow.": (
            lambda ratio, pay, mask: -_mean(clipped_loss(ratio, pay), mask)
        ),
        "max in place of min: the smaller of the two counts.": partial(_wrong, "max"),
        "Nothing is clipped.": partial(_wrong, "not clipped"),
        "Only the clipped term is there. Without the min a step too far has no way back.": (
            partial(_wrong, "clipped alone")
        ),
        "min is taken of ratios, and a negative advantage turns that round: multiply first, then min.": (
            partial(_wrong, "ratios alone")
        ),
        "All tokens weigh the same here. Take the mean of each response, then the mean over responses.": (
            lambda ratio, pay, mask: masked_mean(clipped_loss(ratio, pay), counted(ratio, mask))
        ),
        "Padding is counted: where each token has a ratio, only real tokens have a loss.": (
            lambda ratio, pay, mask: clipped_loss(ratio, pay).mean()
        ),
        "That is the sum over responses. The loss is their mean.": (
            lambda ratio, pay, mask: _mean(clipped_loss(ratio, pay), mask) * len(ratio)
        ),
    },
)

# ---- by hand: exercises 1 to 3 -------------------------------------------------------------------

price_of_skipping = Check(
    "price_of_skipping",
    lambda: [0.15, 0.15],
    lambda: [()],
    {
        "That compares skipping with the reference. The reference is taken away from both modes alike.": (
            lambda: [0.15, -0.3]
        ),
        "Those are the accuracies lost against a reference that is always right.": lambda: [0.2, 0.2],
        "That is a share of what thinking gets right. Equation (3) has the difference.": lambda: [0.16, 0.16],
        "The sign: a bonus is paid for skipping, so it is positive.": lambda: [-0.15, -0.15],
    },
)

honest_pay = Check(
    "honest_pay",
    lambda: [0.0, 0.0, 1.05, 1.0],
    lambda: [()],
    {
        "That is equation (3) as published: a quick wrong answer is paid.": lambda: [0.05, 0.0, 1.05, 1.0],
        "The bonus is gone altogether. A right answer that skips keeps it.": lambda: [0.0, 0.0, 1.0, 1.0],
        "That leaves such questions out. Then a right answer by thinking teaches nothing, either.": (
            lambda: [0.0, 0.0, 0.0, 0.0]
        ),
        "A wrong answer need not cost more than the reference's: its reward is 0, as the reference's is.": (
            lambda: [-0.05, 0.0, 1.05, 1.0]
        ),
    },
)


def start_weight(variant: Variant, epsilon: float = 0.2, *, right: float = 0.9, tokens: int = 400) -> float:
    """The expected weight on the gradient of log P(skip) at P = 1e-6, in millionths, to two digits.

    Half of the responses skip, in so many tokens, and are right with this chance; so is the reference.
    """
    log_probs = torch.zeros(2, tokens, dtype=torch.float64)
    log_probs[:, 0] = math.log(1e-6)
    log_probs.requires_grad_()
    pay = torch.tensor([1.05 - right, 0.05 - right], dtype=torch.float64)
    given = (torch.ones(2, tokens), torch.ones(2, dtype=torch.bool))
    chance = torch.tensor([right, 1 - right], dtype=torch.float64)
    loss = adaptthink_loss(
        log_probs, log_probs.detach(), pay * chance, *given, variant=variant, epsilon=epsilon
    )
    (slope,) = torch.autograd.grad(loss, log_probs)
    weight = -slope[:, 0].sum().item() * 1e6  # the mean over the two rows is the half that skips
    return float(f"{weight:.3g}")


weights_at_the_start = Check(
    "weights_at_the_start",
    lambda: [start_weight("sequence", math.inf), start_weight("sequence"), start_weight("geometric_mean")],
    lambda: [()],
    {
        "Only half of the responses skip.": lambda: [0.1, 0.27, 121.0],
        "The published ratio is P over a half: 2 P, not P.": lambda: [0.025, 0.0675, 60.5],
        "The clip takes the wrong answers away (their ratio lies below 0.8), not the right ones.": (
            lambda: [0.05, -0.085, 60.5]
        ),
        "The released weight is divided by the response's tokens, for its exponent is 1/400.": (
            lambda: [0.05, 0.135, 24200.0]
        ),
        "In millionths: divide the weight by 1e-6.": lambda: [5e-8, 1.35e-7, 6.05e-5],
    },
)
