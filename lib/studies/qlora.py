"""Notebook 02: what training takes in memory, what rounding and merging change, and how low a loss can go."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from lib.dial import Question, parse_question, reach
from lib.dial.responses import statement_sizes
from lib.dial.world import FUSED_OPERATIONS
from lib.formats import ReasoningFormat
from lib.methods.sft_rows import IGNORED, encode
from lib.policies.adapters import merge_adapter
from lib.policies.load import load_policy
from lib.studies.planner import formulas
from lib.studies.planner.models import find_model

KINDS = {"checkpoints": "activations", "scoring": "activations", "gathered": "weights"}

# ---- bits and memory --------------------------------------------------------------------------------------


def bits_per_weight(block: int, second: int) -> float:
    """Of a weight in NF4: its 4, an 8-bit scale a block, a float32 for `second` scales (QLoRA, section 3)."""
    return 4 + 8 / block + 32 / (block * second)


def memory_plan(names: Sequence[str], *, rank: int = 8, rows: int = 4, tokens: int = 1024) -> pd.DataFrame:
    """What training holds on one card by the planner's terms: a row per model, method and kind, in GiB.

    Activations are those of a micro-batch of `rows` x `tokens` with gradient checkpointing.
    """
    found = []
    for name in names:
        model = find_model(name)
        assert model is not None
        for method in ("full", "lora", "qlora"):
            terms = formulas.training_states(model, method, rank, formulas.Sharding("", 1))
            terms += formulas.activations(model, method, rows, tokens)
            trained = model.parameters if method == "full" else model.adapters(rank)
            for term in terms:
                kind = KINDS.get(term.kind, term.kind)
                found.append((name.rpartition("-")[2], method, kind, term.gib, trained / model.parameters))
    return pd.DataFrame(found, columns=["size", "method", "kind", "gib", "trained"])


# ---- what rounding and merging change --------------------------------------------------------------


def padded(
    encoded: Sequence[Mapping[str, list[int]]], tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> dict[str, torch.Tensor]:
    """Rows of `input_ids` and `labels` as a batch (B, T), padded at the right, with its attention mask."""
    collate = DataCollatorForLanguageModeling(tokenizer.pad_token_id)
    return {name: values.to(device) for name, values in collate([dict(row) for row in encoded]).items()}


def batch_of(
    rows: Sequence[Mapping[str, str]], tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> dict[str, torch.Tensor]:
    """The same of rows with `prompt` and `completion`."""
    return padded([encode(row, tokenizer) for row in rows], tokenizer, device)


@torch.inference_mode()
def drift(
    before: PreTrainedModel, after: PreTrainedModel, batch: Mapping[str, torch.Tensor]
) -> dict[str, float]:
    """What a change does to predictions on a batch, at the tokens with loss.

    "kl": KL(before || after) in nats a token; "perplexity": of the text, after; "other_choice": the share of
    tokens where another one is now the likeliest.
    """
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    learnt, wanted = batch["labels"][:, 1:] != IGNORED, batch["labels"][:, 1:]
    p, q = (
        model(**inputs, use_cache=False).logits[:, :-1].float()[learnt].log_softmax(-1)
        for model in (before.eval(), after.eval())
    )
    loss = -q.gather(1, wanted[learnt][:, None]).mean()
    return {
        "kl": max(0.0, (p.exp() * (p - q)).sum(1).mean().item()),  # rounding can make a zero negative
        "perplexity": loss.exp().item(),
        "other_choice": (p.argmax(1) != q.argmax(1)).float().mean().item(),
    }


def ways_to_merge(
    base: str, adapter: Path, dtype: torch.dtype
) -> tuple[PeftModel, dict[str, PreTrainedModel]]:
    """Base and adapter apart, as they were trained, and two wrong merges of them."""
    apart, rounded = (
        PeftModel.from_pretrained(load_policy(base, quantised=True, dtype=dtype)[0], str(adapter)).eval()
        for _ in range(2)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft itself warns of this merge
        rounded = rounded.merge_and_unload()
    original = merge_adapter(base, adapter, quantised=False, dtype=dtype)
    return apart, {"merge into NF4": rounded, "merge into the original": original}


@torch.inference_mode()
def weight_error(unmerged: PeftModel, merged: PreTrainedModel) -> float:
    """Mean difference between base + B A alpha / rank and the merged matrices, over all adapted layers."""
    total = count = 0.0
    for name, layer in unmerged.get_base_model().named_modules():
        if isinstance(layer, LoraLayer):
            expected = dequantize_module_weight(layer.get_base_layer()) + layer.get_delta_weight("default")
            actual = dequantize_module_weight(merged.get_submodule(name))
            total += (expected.float() - actual.float()).abs().sum().item()
            count += expected.numel()
    return total / count


# ---- how low a loss can go -------------------------------------------------------------------------


def guessed_digits(question: Question, format: ReasoningFormat) -> int:
    """How many digits of a gold response are beyond what a pass can compute."""
    if format is ReasoningFormat.CODE:
        return sum(size > FUSED_OPERATIONS for size in statement_sizes(question.depth))
    return int(question.depth > reach(format))


def loss_levels(rows: Sequence[Mapping[str, str]], tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    """The loss of each format, in nats a token, of a model that knows its reach and guesses beyond.

    A response costs log 4 for its format and log 10 for a digit that no pass can compute; all else is sure.
    Rows are dial questions.
    """
    nats = dict.fromkeys(ReasoningFormat, 0.0)
    tokens = dict.fromkeys(ReasoningFormat, 0)
    for row in rows:
        format = ReasoningFormat(row["format"])
        question = parse_question(row["prompt"].removeprefix("Human: ").partition("\n")[0])
        nats[format] += math.log(4) + guessed_digits(question, format) * math.log(10)
        tokens[format] += len(tokenizer(row["completion"], add_special_tokens=False).input_ids) + 1
    return {format.value: nats[format] / tokens[format] for format in ReasoningFormat if tokens[format]}
