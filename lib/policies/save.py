"""Save a policy: weights, tokenizer and provenance, whole or not at all."""

import tempfile
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lib.runs import write_provenance


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
