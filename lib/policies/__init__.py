"""Policies as models: load, quantise, adapt, merge, save; random models for dry runs.

Training belongs to methods, generating to engines.
"""

from lib.policies.adapters import add_lora, merge_adapter, merge_damage, start_embeddings
from lib.policies.load import CHECKPOINTS, load_policy, quiet
from lib.policies.memory import memory_mb, parked, trained_parameters, training_memory
from lib.policies.random_models import random_model
from lib.policies.save import save_policy

__all__ = [
    "CHECKPOINTS",
    "add_lora",
    "load_policy",
    "memory_mb",
    "merge_adapter",
    "merge_damage",
    "parked",
    "quiet",
    "random_model",
    "save_policy",
    "start_embeddings",
    "trained_parameters",
    "training_memory",
]
