"""Load and save policies; build the small model of the dial world from a configuration."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import bitsandbytes  # noqa: F401  it registers the kernels that _mend_dequantisation mends
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as bpe
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    set_seed,
)

from lib.dial import dial_tokenizer
from lib.runs import ROOT, CheckpointError, check_provenance, runs_folder, write_provenance

CHECKPOINTS = ROOT / "data" / "checkpoints"
SAMPLES = ROOT / "data" / "samples"
ARCHITECTURES = {"random-qwen2": "qwen2", "random-qwen3": "qwen3"}  # Qwen2.5 is a qwen2 too

# Bars are drawn again and again in a saved notebook; runs log what matters as numbers instead.
transformers.utils.logging.disable_progress_bar()
# peft still asks transformers by the old name.
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)


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


def load_policy(
    name_or_path: str | Path, *, quantised: bool = False, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer: a shipped checkpoint, a local folder, or a hub name like "org/name@commit".

    `quantised` stores the linear layers in NF4 with double quantisation (QLoRA, section 3), and computes in
    `dtype`. A folder with a provenance file is checked against it first (CheckpointError).
    """
    source, pinned = _source(name_or_path), {}
    if not Path(source).is_dir() and "@" in source:
        source, _, pinned["revision"] = source.partition("@")
    tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left", **pinned)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    quantisation = None
    if quantised:
        _mend_dequantisation()
        quantisation = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=dtype, quantization_config=quantisation, **pinned
    )
    for module in model.modules():
        # On processors with avx512_bf16, bitsandbytes would re-pack the weights in place at the first forward
        # in eval mode: rounded to bfloat16, and with an error where a width is no multiple of 64.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model.to(device).eval(), tokenizer


@functools.cache
def _mend_dequantisation() -> None:
    """Let bitsandbytes dequantise on the CPU whatever the width of a matrix.

    Blocks run through a matrix as through one long row. The CPU kernel of 0.50 lets them start anew in each
    row, so where the width is no multiple of 64 (96 in the dial world) most scales are from a wrong block.
    """
    kernel = torch.library.get_kernel("bitsandbytes::dequantize_4bit", "CPU")

    def dequantise(keys, packed, absmax, blocksize, quant_type, shape, dtype):
        row = kernel.call_boxed(keys, packed, absmax, blocksize, quant_type, [1, math.prod(shape)], dtype)
        return row.reshape(shape)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a kernel is replaced
        _registered.impl("dequantize_4bit", dequantise, "CPU", with_keyset=True)


_registered = torch.library.Library("bitsandbytes", "FRAGMENT")  # what it registers lives as long as it


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


def _source(name_or_path: str | Path) -> str:
    """Where to load from; a shipped checkpoint is checked, and a misspelt one is named."""
    if str(name_or_path).startswith("random-"):
        folder = runs_folder() / "models" / str(name_or_path)
        if not folder.exists():
            random_model(str(name_or_path), folder)
        return str(folder)
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


# ---- LoRA --------------------------------------------------------------------------------------


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


@torch.inference_mode()
def merge_damage(unmerged: PeftModel, merged: PreTrainedModel, input_ids: torch.Tensor) -> dict[str, float]:
    """How far a merged model is from the model with its adapter apart, on `input_ids` (N, T).

    Weights are compared in all adapted layers, as base + B A alpha / rank against the merged matrix.
    """
    largest = total = count = 0.0
    for name, layer in unmerged.get_base_model().named_modules():
        if isinstance(layer, LoraLayer):
            expected = dequantize_module_weight(layer.get_base_layer()) + layer.get_delta_weight("default")
            actual = dequantize_module_weight(merged.get_submodule(name))
            difference = (expected.float() - actual.float()).abs()
            largest = max(largest, difference.max().item())
            total += difference.sum().item()
            count += difference.numel()
    logits = [model.eval()(input_ids=input_ids).logits.float() for model in (unmerged, merged)]
    difference = (logits[0] - logits[1]).abs()
    return {
        "weight_max": largest,
        "weight_mean": total / count,
        "logit_max": difference.max().item(),
        "logit_mean": difference.mean().item(),
    }


def memory_mb(model: PreTrainedModel) -> float:
    """The memory of a model's weights and buffers, in MB."""
    return model.get_memory_footprint() / 2**20


def trained_parameters(model: PreTrainedModel) -> int:
    """How many parameters training changes."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def training_memory(
    config: PretrainedConfig, *, method: str, rank: int = 8, dtype: torch.dtype = torch.bfloat16
) -> dict[str, float]:
    """Computed memory to train a model, in MB, and the number of trained parameters; no weights are made.

    "full" trains in float32. "lora" keeps the base in `dtype`, and "qlora" its linear layers in NF4, with one
    byte for each 64 weights and four for each 256 of those bytes. Adam keeps two values of float32 for each
    trained parameter. Activations come on top: they depend on the batch.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    output = model.get_output_embeddings()
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not output]
    matrices = sum(layer.weight.numel() for layer in layers)
    trained = sum(rank * (layer.in_features + layer.out_features) for layer in layers)
    if method == "full":
        trained, weights = model.num_parameters(), 4 * model.num_parameters()
    elif method == "lora":
        weights = dtype.itemsize * model.num_parameters() + 4 * trained
    elif method == "qlora":
        blocks = matrices / 64
        packed = matrices / 2 + blocks + 4 * blocks / 256
        weights = packed + dtype.itemsize * (model.num_parameters() - matrices) + 4 * trained
    else:
        raise ValueError(f"unknown method {method!r}; there are full, lora and qlora")
    return {
        "trained_parameters": trained,
        "weights_mb": weights / 2**20,
        "gradients_mb": 4 * trained / 2**20,
        "optimizer_mb": 8 * trained / 2**20,
    }


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
