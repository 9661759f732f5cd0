"""Notebook 02: what training takes in memory, by the shapes alone, and what a merge changes."""

from __future__ import annotations

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel


def training_memory(
    config: PretrainedConfig, *, method: str, rank: int = 8, dtype: torch.dtype = torch.bfloat16
) -> dict[str, float]:
    """Computed memory to train a model, in MB, and the number of trained parameters; no weights are made.

    "full" trains in float32. "lora" keeps the base in `dtype`, and "qlora" its linear layers in NF4, with one
    byte for each 64 weights and four for each 256 of those bytes. Adam keeps two values of float32 for each
    trained parameter. Activations come on top: they depend on the batch.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    output = model.get_output_embeddings()
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not output]
    matrices = sum(layer.weight.numel() for layer in layers)
    trained = sum(rank * (layer.in_features + layer.out_features) for layer in layers)
    if method == "full":
        trained, weights = model.num_parameters(), 4 * model.num_parameters()
    elif method == "lora":
        weights = dtype.itemsize * model.num_parameters() + 4 * trained
    elif method == "qlora":
        blocks = matrices / 64
        packed = matrices / 2 + blocks + 4 * blocks / 256
        weights = packed + dtype.itemsize * (model.num_parameters() - matrices) + 4 * trained
    else:
        raise ValueError(f"unknown method {method!r}; there are full, lora and qlora")
    return {
        "trained_parameters": trained,
        "weights_mb": weights / 2**20,
        "gradients_mb": 4 * trained / 2**20,
        "optimizer_mb": 8 * trained / 2**20,
    }


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
