"""Closed forms for memory: each gives a term with its bytes and the arithmetic in words.

What a token costs was read off traces of one training step (`tests/test_planner.py` holds the forms against
torch's own trackers). No GPU has confirmed the margins: MARGIN_GIB, NCCL_GIB.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lib.studies.planner.models import Model

GIB = 2**30
FREE = 0.1  # share of a device's memory that stays free: fragments, kernels' workspaces
MARGIN_GIB = 0.6  # CUDA context and libraries' handles of one process
NCCL_GIB = 1.0  # buffers for talking to other devices
NF4 = 0.516  # bytes a weight: 4 bits, 8 for each 64 weights, 32 for each 256 of those
TILE = 2 * 4096 * 32768  # TRL's scoring: tokens x columns of the vocabulary, in bf16
BATCH_ROWS, BATCH_TOKENS = 256, 2**17  # of a batch of our decode loop
PASS_TOKENS = 8192  # of one pass of the trainer that trims
WIDTHS = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Term:
    """One line of a stage: what takes memory, how much, and why."""

    kind: str
    bytes: float
    formula: str

    @property
    def gib(self) -> float:
        return self.bytes / GIB

    def __str__(self) -> str:
        return f"{self.kind:<13} {self.gib:6.2f} GiB = {self.formula}"


@dataclass(frozen=True)
class Sharding:
    """How a training is spread: which of weights, gradients and optimiser are cut into `world` parts."""

    name: str  # "", ddp, fsdp2, zero2, zero3
    world: int

    def parts(self, what: str) -> int:
        cut = {"fsdp2": "weights gradients optimiser", "zero3": "weights gradients optimiser"}
        cut["zero2"] = "gradients optimiser"
        return self.world if what in cut.get(self.name, "") else 1

    @property
    def whole(self) -> bool:
        """Whether every process holds all weights."""
        return self.parts("weights") == 1


def count(number: float) -> str:
    """A number of weights, for a formula."""
    return f"{number / 1e9:.2f} G" if number >= 5e7 else f"{number / 1e6:.1f} M"


def _over(parts: int) -> str:
    return f" / {parts}" if parts > 1 else ""


# ---- weights and what training adds --------------------------------------------------------------


def weights(model: Model, stored: str, *, parts: int = 1, width: int = 2, kind: str = "weights") -> Term:
    """A copy of a model: "float32", "bfloat16", or "nf4" with the embeddings in `width` bytes."""
    if stored == "nf4":
        rest = model.parameters - model.matrices
        formula = f"NF4 {NF4} B x {count(model.matrices)} + {width} B x {count(rest)} embeddings"
        return Term(kind, (NF4 * model.matrices + width * rest) / parts, formula + _over(parts))
    size = WIDTHS[stored]
    formula = f"{size} B x {count(model.parameters)}"
    return Term(kind, size * model.parameters / parts, formula + _over(parts))


def training_states(model: Model, trained: str, rank: int, sharding: Sharding) -> list[Term]:
    """Weights, gradients and Adam's two moments: float32, but bf16 for adapters on NF4 (TRL casts them)."""
    full, s = trained == "full", sharding
    kind = "bfloat16" if trained == "qlora" else "float32"
    width = WIDTHS[kind]
    changed = model.parameters if full else model.adapters(rank)
    terms = []
    if full and s.name.startswith("zero"):  # DeepSpeed trains a bf16 copy of its float32 weights
        terms += [weights(model, "bfloat16", parts=s.parts("weights"))]
        terms += [_each("optimiser", 4, "float32 weights", changed, s.parts("optimiser"))]
    elif full:
        terms += [weights(model, "float32", parts=s.parts("weights"))]
    else:
        terms += [weights(model, {"lora": "bfloat16", "qlora": "nf4"}[trained], parts=s.parts("weights"))]
        terms += [_each("weights", width, "adapters", changed, s.parts("weights"))]
    terms += [_each("gradients", width, kind, changed, s.parts("gradients"))]
    terms += [_each("optimiser", 2 * width, f"Adam, two of {kind}", changed, s.parts("optimiser"))]
    return terms + _on_the_way(model, full, changed, s)


def _each(kind: str, size: int, what: str, number: float, parts: int) -> Term:
    return Term(kind, size * number / parts, f"{size} B ({what}) x {count(number)}{_over(parts)}")


def _on_the_way(model: Model, full: bool, changed: float, s: Sharding) -> list[Term]:
    """What a way to spread holds besides: gathered weights, buckets, copies in bf16."""
    if s.name == "fsdp2":
        bytes = (4 if full else 2) * model.table + (8 if full else 4) * model.layer
        what = "output layer and one layer, gathered in bf16, with their gradients and buffers"
        each = "4 B x {} + 8 B x {}" if full else "2 B x {} + 4 B x {}"
        return [Term("gathered", bytes, f"{each.format(count(model.table), count(model.layer))}: {what}")]
    if s.name == "zero3":
        return [Term("gathered", 6e9, "2 B x 1 G live and 2 B x 1 G prefetched weights, 2 B x 1 G buckets")]
    if s.name == "zero2":
        return [Term("gathered", 2e9, "buckets, 2 x 2 B x 0.5 G")]
    if s.world > 1:
        return [Term("gradients", 4 * changed, f"4 B x {count(changed)}: DDP's buckets")]
    return []


def reference(model: Model, trained: str, beta: float, sharding: Sharding) -> list[Term]:
    """The frozen copy behind a KL term; LoRA switches its adapters off instead."""
    if not beta or trained != "full":
        return []
    parts = sharding.world if sharding.name in ("fsdp2", "zero3") else 1
    return [weights(model, "float32", parts=parts, kind="reference")]


# ---- activations ---------------------------------------------------------------------------------


def activations(
    model: Model,
    trained: str,
    rows: int,
    tokens: int,
    *,
    pass_tokens: int | None = None,
    sharded: bool = False,
) -> list[Term]:
    """A micro-batch of `rows` x `tokens` with checkpoints; passes of `pass_tokens`, or all rows at once.

    What is trained whole and not sharded runs through float32. Three moments come after each other, and the
    largest counts: the forward pass, scoring, and a layer that is computed again with its gradients.
    """
    h, w, full = model.hidden, model.wide, trained == "full"
    whole = full and not sharded
    at_once = rows if pass_tokens is None else max(1, min(rows, pass_tokens // tokens))
    held, n, width = rows * tokens, at_once * tokens, 4 if whole else 2
    checkpoints = f"checkpoints {width} B x {model.layers} layers x {held:,} x {h}"
    mask = f"mask 3 B x {at_once} rows x {tokens:,}^2"
    a, b = (34, 12) if whole else (38, 14) if trained == "lora" else (22, 12)
    again, formula = n * (a * h + b * w), f"one layer again {n:,} x ({a} x {h} + {b} x {w}) B"
    if trained == "qlora":
        again, formula = again + 2 * h * w, f"{formula} + 2 B x {h} x {w} from NF4"
    scoring, score = TILE + 4 * n * h, f"tile 2 B x 4,096 x 32,768 + 4 B x {n:,} x {h}"
    if full:
        scoring, score = scoring + 4 * model.table, f"{score} + 4 B x {count(model.table)}"
    if whole and model.tied:  # the output layer's gradient waits for the embedding's
        again, formula = again + 4 * model.table, f"{formula} + 4 B x {count(model.table)}"
    moments = [Term("activations", again, formula), Term("scoring", scoring, score)]
    if whole:
        copies = f"bf16 copies by autocast, 2 B x {count(model.parameters)}"
        moments += [Term("weights", 2 * model.parameters, copies)]
    return [
        Term("activations", width * model.layers * held * h, checkpoints),
        Term("activations", 3 * at_once * tokens**2, mask),
        *_one_of(moments),
    ]


def _one_of(moments: list[Term]) -> list[Term]:
    """The largest of terms that do not meet, and for the others what they would have been."""
    first, *others = sorted(moments, key=lambda term: -term.bytes)
    return [
        first,
        *(Term(one.kind, 0, f"({one.gib:.2f} GiB, {one.formula}: at another time)") for one in others),
    ]


def plain_step(model: Model, rows: int, tokens: int) -> list[Term]:
    """A LoRA step with checkpoints that makes all logits, as the faults of notebook 02 are trained."""
    n = rows * tokens
    logits = f"3 x 4 B x {n:,} tokens x {model.vocabulary:,} words"
    checkpoints, mask, *_ = activations(model, "lora", rows, tokens)
    return [checkpoints, mask, Term("logits", 12 * n * model.vocabulary, logits)]


# ---- generation ----------------------------------------------------------------------------------


def decode_rows(responses: int, tokens: int, most: float = BATCH_TOKENS) -> int:
    """How many responses of `tokens` our decode loop holds at once, with `most` tokens in all."""
    return max(1, min(responses, BATCH_ROWS, int(most) // tokens))


def kv_cache(model: Model, rows: int, tokens: int, stored: str) -> Term:
    """Keys and values of a batch, at their longest."""
    width = WIDTHS[stored]
    formula = (
        f"KV 2 x {model.layers} layers x {model.kv_heads} heads x {model.head} x {width} B x {rows:,} rows x "
        f"{tokens:,} tokens"
    )
    return Term("KV cache", model.kv(width) * rows * tokens, formula)


def next_token(model: Model, rows: int) -> Term:
    """Logits of one position and what sampling makes of them."""
    return Term("logits", 32 * rows * model.vocabulary, f"32 B x {rows:,} rows x {model.vocabulary:,} words")


def prompts(model: Model, rows: int, tokens: int, stored: str) -> Term:
    """The widest moment of reading the prompts."""
    width, h, w = WIDTHS[stored], model.hidden, model.wide
    formula = f"{width} B x {rows:,} prompts x {tokens:,} x (4 x {h} + 3 x {w})"
    return Term("activations", width * rows * tokens * (4 * h + 3 * w), formula)


def generation(
    model: Model, responses: int, prompt: int, cap: int, stored: str, *, free: float = math.inf
) -> list[Term]:
    """Our decode loop at its longest: `responses` of `cap` tokens, after prompts of `prompt`.

    Its keys and values take half of the `free` bytes at most.
    """
    most = min(BATCH_TOKENS, max(0.0, free) / 2 / model.kv(WIDTHS[stored]))
    rows = decode_rows(responses, prompt + cap, most)
    return [
        kv_cache(model, rows, prompt + cap, stored),
        *_one_of([next_token(model, rows), prompts(model, rows, prompt, stored)]),
    ]


def vllm(memory_gib: float, share: float) -> Term:
    """The share of the device that vLLM reserves beside a training."""
    return Term("vLLM", share * memory_gib * GIB, f"vllm_gpu_memory_utilization {share} x {memory_gib} GiB")


def margin(world: int) -> Term:
    """What a process takes before its first tensor."""
    nccl = f" + {NCCL_GIB} NCCL" if world > 1 else ""
    return Term("margin", (MARGIN_GIB + NCCL_GIB * (world > 1)) * GIB, f"{MARGIN_GIB} CUDA context{nccl}")


def kernel_context() -> Term:
    """What the notebook's own process keeps of a device while its models are parked."""
    return Term(
        "kernel", MARGIN_GIB * GIB, f"{MARGIN_GIB} CUDA context; its models are parked in main memory"
    )
