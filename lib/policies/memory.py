"""The memory that a model takes, lent."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel


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
