"""LoRA on a policy: put it on, and merge it in."""

from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lib.policies.load import load_policy, quiet


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
