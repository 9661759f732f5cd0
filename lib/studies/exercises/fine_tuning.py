"""Your turn in 02: NF4, its bits, larger blocks, a LoRA layer, the merge; beside it labels and loss."""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes import functional as bnb
from peft import LoraConfig, inject_adapter_in_model

from lib.studies.exercises.core import Cases, Check
from lib.studies.exercises.fine_tuning_loss import completion_loss as completion_loss
from lib.studies.exercises.fine_tuning_loss import drawn
from lib.studies.exercises.fine_tuning_loss import encode as encode
from lib.studies.qlora import bits_per_weight

# ---- rounding to NF4 -----------------------------------------------------------------------------


def _by_bitsandbytes(weight: torch.Tensor, block: int = 64) -> torch.Tensor:
    """As one long row, in which the kernel for CPUs finds every block (see `lib.policies.load`)."""
    packed, state = bnb.quantize_4bit(weight.reshape(1, -1), quant_type="nf4", blocksize=block)
    return bnb.dequantize_4bit(packed, state).reshape(weight.shape)


def _levels() -> torch.Tensor:
    return bnb.get_4bit_type("nf4", device="cpu")


def _rounded(
    blocks: torch.Tensor, scale: torch.Tensor, levels: torch.Tensor, *, down: bool = False
) -> torch.Tensor:
    """Blocks (blocks, n) on levels; the result is not yet multiplied by `scale`."""
    away = (blocks / scale)[:, :, None] - levels
    return levels[(away.abs() if not down else away.where(away >= 0, torch.inf)).argmin(dim=2)]


def _blocks(weight: torch.Tensor, size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    blocks = weight.reshape(-1, size)
    return blocks, blocks.abs().amax(dim=1, keepdim=True)


def _nf4(weight: torch.Tensor, *, size: int = 64, back: bool = True, **how: Any) -> torch.Tensor:
    blocks, scale = _blocks(weight, size)
    found = _rounded(blocks, scale, how.pop("levels", _levels()), **how)
    return (found * scale if back else found).reshape(weight.shape)


def _by_largest(weight: torch.Tensor) -> torch.Tensor:
    blocks, _ = _blocks(weight)
    scale = blocks.amax(dim=1, keepdim=True)
    return (_rounded(blocks, scale, _levels()) * scale).reshape(weight.shape)


round_to_nf4 = Check(
    "round_to_nf4",
    _by_bitsandbytes,
    lambda: [
        (drawn(2, 64),),
        (drawn(3, 128, seed=1) * 0.02,),
        (drawn(2, 96, seed=2),),
        (-drawn(1, 64).abs(),),
    ],
    {
        "One scale serves the whole matrix here. Each block of 64 weights has its own.": (
            lambda weight: _nf4(weight, size=weight.numel())
        ),
        "Here a block is a row. It is 64 weights that lie side by side, wherever rows end.": (
            lambda weight: _nf4(weight, size=weight.shape[1])
        ),
        "The scale is the largest absolute value: the largest weight of a block may be a negative one.": (
            _by_largest
        ),
        "The levels found are still between -1 and 1: multiply them by the scale of their block.": (
            lambda weight: _nf4(weight, back=False)
        ),
        "These levels are evenly spaced. NF4's lie closer together near zero; `levels` has them.": (
            lambda weight: _nf4(weight, levels=torch.linspace(-1, 1, 16))
        ),
        "This takes the next level below. Rounding takes the nearest one.": lambda weight: _nf4(
            weight, down=True
        ),
        "These are places in the list of levels. Look the levels up, and multiply by the scale.": (
            lambda weight: (
                ((weight.reshape(-1, 64) / _blocks(weight)[1])[:, :, None] - _levels())
                .abs()
                .argmin(2)
                .reshape(weight.shape)
            )
        ),
        "The weights are not divided by the largest of their block, so only a few levels are used.": (
            lambda weight: _rounded(weight.reshape(-1, 64), torch.ones(1), _levels()).reshape(weight.shape)
        ),
    },
)

# ---- bits of a weight ----------------------------------------------------------------------------


bits = Check(
    "bits",
    bits_per_weight,
    lambda: [(64, 256), (128, 256), (32, 64)],
    {
        "That is without the second rounding: the scale of a block takes 8 bits now, in place of 32.": (
            lambda block, second: 4 + 32 / block
        ),
        "The 8-bit scales have a scale of their own, a float32 for each `second` of them.": (
            lambda block, second: 4 + 8 / block
        ),
        "`second` counts scales, not weights: a float32 serves block times second weights.": (
            lambda block, second: 4 + 8 / block + 32 / second
        ),
        "Sixteen levels need 4 bits, not 16: what is kept is the index of a level.": (
            lambda block, second: 16 + 8 / block + 32 / (block * second)
        ),
        "Those are the scales alone. The weight's own 4 bits are missing.": (
            lambda block, second: 8 / block + 32 / (block * second)
        ),
    },
)

# ---- larger blocks -------------------------------------------------------------------------------


def _error(weight: torch.Tensor, block: int) -> float:
    """The spread of what rounding to NF4 adds to a matrix."""
    return (_by_bitsandbytes(weight, block) - weight).std().item()


def _growth(weight: torch.Tensor, block: int) -> float:
    return _error(weight, block) / _error(weight, 64) - 1


def _saved(block: int) -> float:
    return bits_per_weight(64, 256) - bits_per_weight(block, 256)


larger_blocks = Check(
    "larger_blocks",
    lambda weight, block: (_growth(weight, block), _saved(block)),
    lambda: [(drawn(8, 256), 256), (drawn(4, 96, seed=1) * 0.02, 128), (drawn(2, 64, seed=2), 64)],
    {
        "The first is the new error as a share of the old one. By how much has it grown? Take 1 away.": (
            lambda weight, block: (_growth(weight, block) + 1, _saved(block))
        ),
        "The first is measured against the error in blocks of 64, not against the spread of the weights.": (
            lambda weight, block: ((_error(weight, block) / weight.std()).item(), _saved(block))
        ),
        "This subtracts errors over the spread of the weights. Divide one error by the other.": (
            lambda weight, block: (
                ((_error(weight, block) - _error(weight, 64)) / weight.std()).item(),
                _saved(block),
            )
        ),
        "Double quantisation is there in both: take the bits from `bits(block, 256)`.": (
            lambda weight, block: (_growth(weight, block), 32 / 64 - 32 / block)
        ),
        "What is saved is positive: the bits at 64 minus those of the larger blocks.": (
            lambda weight, block: (_growth(weight, block), -_saved(block))
        ),
        "The second is what a weight takes. Give what is saved against blocks of 64.": (
            lambda weight, block: (_growth(weight, block), bits_per_weight(block, 256))
        ),
    },
)

# ---- LoRA: beside the weights, and merged into them ----------------------------------------------


def _layer(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, alpha: float) -> Any:
    """A linear layer with the adapter beside it, as peft makes it."""
    plain = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    config = LoraConfig(r=len(a), lora_alpha=alpha, target_modules=["0"])
    layer: Any = inject_adapter_in_model(config, torch.nn.Sequential(plain))[0]
    with torch.no_grad():
        for place, values in (
            (layer.base_layer, weight),
            (layer.lora_A.default, a),
            (layer.lora_B.default, b),
        ):
            place.weight.copy_(values)
    return layer.eval()


def _layers() -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]]:
    shapes = ((6, 4, 2, 16), (4, 6, 3, 6), (5, 5, 4, 8))  # out, in, rank, alpha
    return [
        (drawn(out, into, seed=1), drawn(rank, into, seed=2), drawn(out, rank, seed=3), alpha)
        for out, into, rank, alpha in shapes
    ]


@torch.no_grad()
def _beside(x: torch.Tensor, *parts: Any) -> torch.Tensor:
    return _layer(*parts)(x)


lora = Check(
    "lora",
    _beside,
    lambda: [(drawn(3, parts[0].shape[1]), *parts) for parts in _layers()],
    {
        "The correction is multiplied by alpha / r: with alpha fixed, its size hardly depends on the rank.": (
            lambda x, w, a, b, alpha: x @ w.T + x @ a.T @ b.T
        ),
        "alpha is still to be divided by the rank.": lambda x, w, a, b, alpha: (
            x @ w.T + alpha * x @ a.T @ b.T
        ),
        "The rank is the number of A's rows, the thin side.": (
            lambda x, w, a, b, alpha: x @ w.T + alpha / a.shape[1] * x @ a.T @ b.T
        ),
        "That is the correction alone. The frozen layer's own output is added to it.": (
            lambda x, w, a, b, alpha: alpha / len(a) * x @ a.T @ b.T
        ),
        "x meets A first, which makes it thin, and then B.": (
            lambda x, w, a, b, alpha: x @ w.T + alpha / len(a) * x @ b @ a
        ),
        "B's rows are the outputs. The rank is the number of A's rows, the thin side.": (
            lambda x, w, a, b, alpha: x @ w.T + alpha / len(b) * x @ a.T @ b.T
        ),
        "The factor alpha / r belongs to the correction alone, not to the frozen layer.": (
            lambda x, w, a, b, alpha: alpha / len(a) * (x @ w.T + x @ a.T @ b.T)
        ),
        "The factor is upside down: alpha / r.": (
            lambda x, w, a, b, alpha: x @ w.T + len(a) / alpha * x @ a.T @ b.T
        ),
    },
)


@torch.no_grad()
def _merged(weight: torch.Tensor, *parts: Any) -> torch.Tensor:
    layer = _layer(_by_bitsandbytes(weight), *parts)
    layer.merge()
    return layer.get_base_layer().weight


def _pairs() -> Cases:
    shapes = ((8, 64, 4, 8), (3, 128, 2, 16), (2, 96, 8, 4))
    return [
        (drawn(out, into, seed=1), drawn(rank, into, seed=2) / 8, drawn(out, rank, seed=3) / 8, alpha)
        for out, into, rank, alpha in shapes
    ]


merge = Check(
    "merge",
    _merged,
    _pairs,
    {
        "That is merged into the original weights. The adapter was learnt beside the rounded ones.": (
            lambda w, a, b, alpha: w + alpha / len(a) * b @ a
        ),
        "The sum is rounded once more, and that takes most of the correction away.": (
            lambda w, a, b, alpha: _by_bitsandbytes(_by_bitsandbytes(w) + alpha / len(a) * b @ a)
        ),
        "The correction has a factor alpha / r here, too, as in (3).": (
            lambda w, a, b, alpha: _by_bitsandbytes(w) + b @ a
        ),
        "alpha is still to be divided by the rank.": lambda w, a, b, alpha: (
            _by_bitsandbytes(w) + alpha * b @ a
        ),
        "That is the correction alone. It is added to the rounded weights.": (
            lambda w, a, b, alpha: alpha / len(a) * b @ a
        ),
        "These are the rounded weights. The correction is missing.": (
            lambda w, a, b, alpha: _by_bitsandbytes(w)
        ),
    },
)
