"""Your turn in notebook 02: NF4, its bits, a LoRA layer, labels, the loss of a batch, the merge."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from bitsandbytes import functional as bnb
from peft import LoraConfig, inject_adapter_in_model
from torch.nn.functional import cross_entropy
from transformers.loss.loss_utils import ForCausalLMLoss

from lib import dial
from lib.methods import sft_rows
from lib.studies.exercises.core import Cases, Check
from lib.studies.qlora import bits_per_weight


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- rounding to NF4 -----------------------------------------------------------------------------


def _by_bitsandbytes(weight: torch.Tensor) -> torch.Tensor:
    """As one long row, in which the kernel for CPUs finds every block (see `lib.policies.load`)."""
    packed, state = bnb.quantize_4bit(weight.reshape(1, -1), quant_type="nf4", blocksize=64)
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
        (_random(2, 64),),
        (_random(3, 128, seed=1) * 0.02,),
        (_random(2, 96, seed=2),),
        (-_random(1, 64).abs(),),
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
        (_random(out, into, seed=1), _random(rank, into, seed=2), _random(out, rank, seed=3), alpha)
        for out, into, rank, alpha in shapes
    ]


@torch.no_grad()
def _beside(x: torch.Tensor, *parts: Any) -> torch.Tensor:
    return _layer(*parts)(x)


lora = Check(
    "lora",
    _beside,
    lambda: [(_random(3, parts[0].shape[1]), *parts) for parts in _layers()],
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
        (_random(out, into, seed=1), _random(rank, into, seed=2) / 8, _random(out, rank, seed=3) / 8, alpha)
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

# ---- labels --------------------------------------------------------------------------------------


_tokenizer = cache(dial.dial_tokenizer)


def _rows() -> Cases:
    questions = dial.sample_questions(1, seed=0)
    return [(row, _tokenizer()) for row in dial.gold_rows(questions, seed=0)]


def _changed(row: Any, tokenizer: Any, change: Any) -> dict[str, list[int]]:
    """The labels of `encode`, changed; `change` is given ids, labels and the length of the prompt."""
    sound = sft_rows.encode(row, tokenizer)
    ids, labels = change(sound["input_ids"], sound["labels"], sound["labels"].count(sft_rows.IGNORED))
    return {"input_ids": ids, "labels": labels}


encode = Check(
    "encode",
    sft_rows.encode,
    _rows,
    {
        "The end token is missing: a model that is never taught to stop does not stop.": (
            lambda row, tokenizer: _changed(row, tokenizer, lambda ids, labels, n: (ids[:-1], labels[:-1]))
        ),
        "The prompt carries loss: its labels must be -100.": (
            lambda row, tokenizer: _changed(row, tokenizer, lambda ids, labels, n: (ids, ids))
        ),
        "The end token is there and has no label, so it is not learnt.": (
            lambda row, tokenizer: _changed(
                row, tokenizer, lambda ids, labels, n: (ids, [*labels[:-1], -100])
            )
        ),
        "The labels are shifted. A label stands at its own token; the model shifts them itself.": (
            lambda row, tokenizer: _changed(row, tokenizer, lambda ids, labels, n: (ids, [*labels[1:], -100]))
        ),
        "0 is the id of a token. Only -100 means: no loss here.": (
            lambda row, tokenizer: _changed(
                row, tokenizer, lambda ids, labels, n: (ids, [0] * n + labels[n:])
            )
        ),
        "Labels are ids: on the completion the token's own, not 1.": (
            lambda row, tokenizer: _changed(
                row, tokenizer, lambda ids, labels, n: (ids, labels[:n] + [1] * len(labels[n:]))
            )
        ),
        "The labels are as long as the ids: -100 stands for each token of the prompt.": (
            lambda row, tokenizer: _changed(row, tokenizer, lambda ids, labels, n: (ids, labels[n:]))
        ),
        "The wrong way round: the prompt has labels and the completion none.": (
            lambda row, tokenizer: _changed(
                row, tokenizer, lambda ids, labels, n: (ids, ids[:n] + [-100] * len(ids[n:]))
            )
        ),
    },
)

# ---- the loss of a batch -------------------------------------------------------------------------


def _batches() -> Cases:
    labels = torch.tensor([[-100, -100, 3, 1, 4], [-100, 2, 0, -100, -100], [-100, -100, -100, -100, 1]])
    return [
        (_random(3, 5, 6), labels),
        (3 * _random(2, 5, 6, seed=1), labels[:2]),
        (torch.zeros(1, 5, 6), labels[:1]),
    ]


def _losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss of each token, (B, T - 1); 0 where there is none."""
    return cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")


def _chosen(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean over tokens with loss of the values (B, T, V) that predict them."""
    mask = labels[:, 1:] != sft_rows.IGNORED
    found = values[:, :-1].gather(2, labels[:, 1:].clamp(min=0)[:, :, None])[:, :, 0]
    return (found * mask).sum() / mask.sum()


def _by_row(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (_losses(logits, labels).sum(1) / (labels != -100).sum(1)).mean()


completion_loss = Check(
    "completion_loss",
    lambda logits, labels: ForCausalLMLoss(logits, labels, logits.shape[-1]),
    _batches,
    {
        "Nothing is shifted: the logits at place k predict the token at place k + 1.": (
            lambda logits, labels: cross_entropy(logits.flatten(0, 1), labels.flatten())
        ),
        "That is the mean over rows of each row's mean. Equation (4) weighs every token the same.": _by_row,
        "Tokens without loss are counted in the denominator. Divide by the number of those with it.": (
            lambda logits, labels: _losses(logits, labels).mean()
        ),
        "That is the sum. Equation (4) divides it by the number of tokens with loss.": (
            lambda logits, labels: _losses(logits, labels).sum()
        ),
        "The sign: a loss is minus the log-probability.": (
            lambda logits, labels: -_losses(logits, labels).sum() / (labels != -100).sum()
        ),
        "Shifted the wrong way: logits look forward, so the last ones have no label.": (
            lambda logits, labels: cross_entropy(
                logits[:, 1:].flatten(0, 1), labels[:, :-1].flatten()
            ).nan_to_num()
        ),
        "That is the mean over responses. Equation (4) divides by the number of tokens with loss.": (
            lambda logits, labels: _losses(logits, labels).sum() / len(labels)
        ),
        "A probability is not its logarithm: log_softmax in place of softmax.": (
            lambda logits, labels: -_chosen(logits.softmax(2), labels)
        ),
        "Logits are no log-probabilities yet: take log_softmax of them.": (
            lambda logits, labels: -_chosen(logits, labels)
        ),
        "Places with -100 have no loss, and here they are counted as if token 0 stood there.": (
            lambda logits, labels: cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].clamp(min=0).flatten()
            )
        ),
    },
)
