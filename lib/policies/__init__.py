"""Policies as models: load, quantise, adapt, merge, save.

Training belongs to methods, generating to engines.
"""

from lib.policies.adapters import add_lora, merge_adapter, start_embeddings
from lib.policies.load import load_policy
from lib.policies.memory import parked
from lib.policies.save import save_policy
