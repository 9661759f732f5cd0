"""LoRA on a policy: put it on, merge it in, and measure what merging changes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lib.policies.load import load_policy, quiet

# ---- LoRA --------------------------------------------------------------------------------------


def add_lora(model: PreTrainedModel, *, rank: int, alpha: int, train_embeddings: bool = False) -> PeftModel:
    """Freeze a model and put LoRA on all its linear layers but the output layer (LoRA, section 4.1).

    `train_embeddings` also trains a copy of the embedding and output layers, kept in the adapter: a model
    whose output layer is frozen can hardly learn to say tokens that are new to it.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules="all-linear",
        modules_to_save=["embed_tokens", "lm_head"] if train_embeddings else None,
        ensure_weight_tying=train_embeddings and model.config.tie_word_embeddings,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


@torch.no_grad()
def start_embeddings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, starts: Mapping[str, str]
) -> None:
    """Copy the embedding of a known token to each new one, in place: {new token: known token}."""
    vocabulary, rows = tokenizer.get_vocab(), model.get_input_embeddings().weight
    for token in (*starts, *starts.values()):
        if token not in vocabulary:
            raise ValueError(f"new_tokens names {token!r}, which is no token of this model")
    for new, known in starts.items():
        rows[vocabulary[new]] = rows[vocabulary[known]]


def merge_adapter(
    base: str | Path, adapter: str | Path, *, quantised: bool, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """The base with the adapter merged into its weights, in `dtype`.

    An adapter trained on a quantised base has learnt to mend just that base: so the base is quantised,
    de-quantised, and only then merged. Merging into NF4, or into the unquantised base, gives another model.
    """
    model, _ = load_policy(base, quantised=quantised, dtype=dtype)
    if quantised:
        with quiet("transformers"):
            model = model.dequantize(dtype=dtype)
        model.is_loaded_in_4bit = False
    return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().eval()


@torch.inference_mode()
def merge_damage(unmerged: PeftModel, merged: PreTrainedModel, input_ids: torch.Tensor) -> dict[str, float]:
    """How far a merged model is from the model with its adapter apart, on `input_ids` (N, T).

    Weights are compared in all adapted layers, as base + B A alpha / rank against the merged matrix.
    """
    largest = total = count = 0.0
    for name, layer in unmerged.get_base_model().named_modules():
        if isinstance(layer, LoraLayer):
            expected = dequantize_module_weight(layer.get_base_layer()) + layer.get_delta_weight("default")
            actual = dequantize_module_weight(merged.get_submodule(name))
            difference = (expected.float() - actual.float()).abs()
            largest = max(largest, difference.max().item())
            total += difference.sum().item()
            count += difference.numel()
    logits = [model.eval()(input_ids=input_ids).logits.float() for model in (unmerged, merged)]
    difference = (logits[0] - logits[1]).abs()
    return {
        "weight_max": largest,
        "weight_mean": total / count,
        "logit_max": difference.max().item(),
        "logit_mean": difference.mean().item(),
    }
