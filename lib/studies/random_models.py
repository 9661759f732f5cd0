"""Small untrained models of real architectures, saved to disk, for dry runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase, Qwen2Tokenizer, set_seed

from lib.policies.save import save_policy
from lib.runs import ROOT, CheckpointError

SAMPLES = ROOT / "data" / "samples"
ARCHITECTURES = {"random-qwen2": "qwen2", "random-qwen3": "qwen3"}  # Qwen2.5 is a qwen2 too


def byte_level_tokenizer(texts: Sequence[str], *, vocabulary: int = 1000) -> PreTrainedTokenizerBase:
    """Qwen's byte-level BPE, learnt anew from a few texts, with that many tokens at most."""
    blank = Qwen2Tokenizer(unk_token=None, pad_token="<|pad|>")
    return blank.train_new_from_iterator(texts, vocabulary, show_progress=False)


def random_model(name: str, folder: Path) -> None:
    """Save a small untrained model of a real architecture, for dry runs: "random-qwen2" or "random-qwen3".

    Its byte-level BPE tokenizer is learnt from data/samples; <think>, </think> and R1's "Alright" are tokens.
    """
    if name not in ARCHITECTURES:
        raise CheckpointError(f"There is no {name!r}; dry runs know {', '.join(ARCHITECTURES)}.")
    texts = [path.read_text(encoding="utf-8") for path in sorted(SAMPLES.glob("*.jsonl"))]
    tokenizer = byte_level_tokenizer(texts)
    tokenizer.add_tokens(["<think>", "</think>", "Alright"])
    set_seed(0)
    config = AutoConfig.for_model(
        ARCHITECTURES[name],
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    save_policy(AutoModelForCausalLM.from_config(config), tokenizer, folder, architecture=ARCHITECTURES[name])
