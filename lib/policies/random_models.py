"""Small untrained models of real architectures, saved to disk, for dry runs."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as bpe
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, set_seed

from lib.policies.save import save_policy
from lib.runs import ROOT, CheckpointError

SAMPLES = ROOT / "data" / "samples"
ARCHITECTURES = {"random-qwen2": "qwen2", "random-qwen3": "qwen3"}  # Qwen2.5 is a qwen2 too


def random_model(name: str, folder: Path) -> None:
    """Save a small untrained model of a real architecture, for dry runs: "random-qwen2" or "random-qwen3".

    Its byte-level BPE tokenizer is learnt from data/samples, and has <think> and </think> as tokens.
    """
    if name not in ARCHITECTURES:
        raise CheckpointError(f"There is no {name!r}; dry runs know {', '.join(ARCHITECTURES)}.")
    texts = [path.read_text(encoding="utf-8") for path in sorted(SAMPLES.glob("*.jsonl"))]
    tokenizer = Tokenizer(bpe.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|pad|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(["<think>", "</think>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[0], pad_token=special[1])
    set_seed(0)
    config = AutoConfig.for_model(
        ARCHITECTURES[name],
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    save_policy(AutoModelForCausalLM.from_config(config), fast, folder, architecture=ARCHITECTURES[name])
