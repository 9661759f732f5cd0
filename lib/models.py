"""Load and save policies; build the small model of the dial world from a configuration."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
    set_seed,
)

from lib.dial import dial_tokenizer
from lib.runs import ROOT, CheckpointError, check_provenance, write_provenance

CHECKPOINTS = ROOT / "data" / "checkpoints"

# Bars are drawn again and again in a saved notebook; runs log what matters as numbers instead.
transformers.utils.logging.disable_progress_bar()


def new_dial_model(*, seed: int, layers: int = 3, width: int = 96) -> PreTrainedModel:
    """An untrained Qwen3-architecture model for the dial tokenizer, about 0.4 million parameters."""
    tokenizer = dial_tokenizer()
    set_seed(seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=320,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=width // 4,
            initializer_range=0.05,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def load_policy(name_or_path: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model in full precision and its tokenizer: a shipped checkpoint, a local folder, or a hub name.

    A folder with a provenance file is checked against it first (CheckpointError).
    """
    shipped = CHECKPOINTS / str(name_or_path)
    folder = shipped if shipped.is_dir() else Path(name_or_path)
    if (folder / "provenance.json").exists() or folder == shipped:
        check_provenance(folder)
    elif str(name_or_path).startswith("dial-"):
        known = ", ".join(sorted(path.name for path in CHECKPOINTS.glob("*") if path.is_dir())) or "none"
        raise CheckpointError(
            f"There is no shipped checkpoint {str(name_or_path)!r}; data/checkpoints/ holds {known}."
        )
    source = str(folder) if folder.is_dir() else str(name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return model.to(device).eval(), tokenizer


def save_policy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, **facts: Any
) -> None:
    """Save weights (safetensors), tokenizer and provenance in one step: the folder is whole or unchanged."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        new = Path(scratch) / "new"
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
        write_provenance(new, **facts, parameters=model.num_parameters())
        if folder.exists():
            folder.replace(Path(scratch) / "old")
        new.replace(folder)
