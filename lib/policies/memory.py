"""What a model takes in memory, measured and computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel


def memory_mb(model: PreTrainedModel) -> float:
    """The memory of a model's weights and buffers, in MB."""
    return model.get_memory_footprint() / 2**20


def trained_parameters(model: PreTrainedModel) -> int:
    """How many parameters training changes."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@contextmanager
def parked(*models: PreTrainedModel) -> Iterator[None]:
    """Keep models in the main memory meanwhile, so that another process has the accelerator's."""
    places = [model.device for model in models]
    for model in models:
        model.to("cpu")
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
    try:
        yield
    finally:
        for model, place in zip(models, places, strict=True):
            model.to(place)


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
