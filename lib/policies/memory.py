"""What a model takes in memory, and how to lend it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel


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
