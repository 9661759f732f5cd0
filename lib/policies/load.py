"""Load a policy: a shipped checkpoint, a folder or a hub model."""

import contextlib
import functools
import logging
import math
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bitsandbytes  # noqa: F401  it registers the kernels that _mend_dequantisation mends
import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lib.runs import ROOT, CheckpointError, check_provenance, digest, read_json

CHECKPOINTS = ROOT / "data" / "checkpoints"

# Bars are drawn again and again in a saved notebook; runs log what matters as numbers instead.
transformers.utils.logging.disable_progress_bar()
# peft, and we for the sake of transformers 5.17, still use the old names.
warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)


def load_policy(
    name_or_path: str | Path, *, quantised: bool = False, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer: a shipped checkpoint, a local folder, or a hub name like "org/name@commit".

    `quantised` stores the linear layers in NF4 with double quantisation (QLoRA, section 3), and computes in
    `dtype`. A folder with a provenance file is checked against it first (CheckpointError).
    """
    if quantised and (sharding := sharded_by()):
        raise ValueError(
            f"4-bit weights (QLoRA) cannot be sharded by {sharding}: their scales stay behind ('absmax'). "
            "Take PARALLEL ddp or zero2, where each device holds the base, or LoRA on 16-bit weights"
        )
    source, pinned = find_source(name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left", **pinned)
    options: dict[str, Any] = {"dtype": dtype, **pinned}
    if quantised:
        _mend_dequantisation()
        nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
        options["quantization_config"] = BitsAndBytesConfig(**nf4, bnb_4bit_compute_dtype=dtype)
    model = AutoModelForCausalLM.from_pretrained(source, **options)
    for module in model.modules():
        # On processors with avx512_bf16, bitsandbytes would re-pack the weights in place at the first forward
        # in eval mode: rounded to bfloat16, and with an error where a width is no multiple of 64.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if not sharded_by():  # else it stays here: whole, it may not fit on a device
        if dtype == torch.float32 and not quantised:
            model.as_loaded = weights_of(model)
        if accelerator := torch.accelerator.current_accelerator(check_available=True):
            # With its number: each of several processes has one of its own.
            model = model.to(torch.device(accelerator.type, torch.accelerator.current_device_index()))
    return model.eval(), tokenizer


def sharded_by() -> str:
    """Which of accelerate's configurations shards the weights that this process will train, if one does."""
    fsdp, zero = (os.environ.get(name) for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_DEEPSPEED_ZERO_STAGE"))
    return "fsdp2" if fsdp == "true" else "zero3" if zero == "3" else ""


def load_tokenizer(name_or_path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer alone, of what `load_policy` loads."""
    source, pinned = find_source(name_or_path)
    return AutoTokenizer.from_pretrained(source, padding_side="left", **pinned)


def find_source(name_or_path: str | Path) -> tuple[str, dict[str, str]]:
    """A folder, or a hub name taken apart: "org/name@commit" -> ("org/name", {"revision": "commit"})."""
    source = _source(name_or_path)
    name, at, revision = source.partition("@")
    return (name, {"revision": revision}) if at and not Path(source).is_dir() else (source, {})


@functools.cache
def _mend_dequantisation() -> None:
    """Let bitsandbytes dequantise on the CPU whatever the width of a matrix.

    Blocks run through a matrix as through one long row. The CPU kernel of 0.50 lets them start anew in each
    row, so where the width is no multiple of 64 (96 in the dial world) most scales are from a wrong block.
    """
    kernel = torch.library.get_kernel("bitsandbytes::dequantize_4bit", "CPU")

    def dequantise(
        keys: Any, packed: Any, absmax: Any, blocksize: int, quant_type: str, shape: Any, dtype: Any
    ) -> torch.Tensor:
        row = kernel.call_boxed(keys, packed, absmax, blocksize, quant_type, [1, math.prod(shape)], dtype)
        return row.reshape(shape)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a kernel is replaced
        _registered.impl("dequantize_4bit", dequantise, "CPU", with_keyset=True)


_registered = torch.library.Library("bitsandbytes", "FRAGMENT")  # what it registers lives as long as it


def _source(name_or_path: str | Path) -> str:
    """Where to load from; a shipped checkpoint is checked, and a misspelt one is named."""
    shipped = CHECKPOINTS / str(name_or_path)
    folder = shipped if shipped.is_dir() else Path(name_or_path)
    if (folder / "provenance.json").exists() or folder.parent == CHECKPOINTS:
        check_provenance(folder)
    elif str(name_or_path).startswith("dial-"):
        known = ", ".join(sorted(path.name for path in CHECKPOINTS.glob("*") if path.is_dir())) or "none"
        raise CheckpointError(
            f"There is no shipped checkpoint {str(name_or_path)!r}; data/checkpoints/ holds {known}."
        )
    return str(folder) if folder.is_dir() else str(name_or_path)


def fingerprint(name_or_path: str | Path) -> str:
    """What tells these weights from others at the same place: hashes if kept, else sizes and times."""
    folder = Path(_source(name_or_path))
    if not folder.is_dir():
        return str(name_or_path)
    if (folder / "provenance.json").exists():
        return digest(read_json(folder / "provenance.json")["sha256"])
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return digest([[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files])


def weights_of(model: PreTrainedModel) -> str:
    """What tells weights in memory from others: of a folder, as loaded in float32, its fingerprint.

    Else a hash of up to 256 numbers of each parameter: merged, adapted, quantised, cast or trained on, a
    model keeps the name of its base, and a hub's name stands for many commits.
    """
    few = {name: [str(p.dtype), p.flatten()[:: p.numel() // 256 + 1]] for name, p in model.named_parameters()}
    found, name = digest(few), str(model.name_or_path)
    place = fingerprint(name) if found == getattr(model, "as_loaded", "") else name
    return found if place == name else place


@contextlib.contextmanager
def quiet(name: str) -> Iterator[None]:
    """Hold back the warnings of one library's logger."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
