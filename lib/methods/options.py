"""Options of TRL's that a configuration takes: known, not set elsewhere, in range, not refused by TRL."""

import typing
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal

import torch

from lib.checked import Range, close, faults, is_json, tracker_fault

# What TRL and transformers take without a word, or refuse at the first step.
_SHARE, _COUNT = Annotated[float, Range(0, 1)], Annotated[int, Range(1)]
_CORRECTIONS = Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
_LIMITS: dict[str, Any] = {
    **dict.fromkeys(("num_iterations", "per_device_eval_batch_size", "ref_model_sync_steps"), _COUNT),
    **dict.fromkeys(("save_total_limit", "num_generations_eval", "vllm_max_model_length"), _COUNT | None),
    **dict.fromkeys(("top_entropy_quantile", "ref_model_mixup_alpha", "label_smoothing_factor"), _SHARE),
    **dict.fromkeys(("top_p", "vllm_gpu_memory_utilization"), Annotated[float, Range(above=0, high=1)]),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), Annotated[float, Range(0, below=1)]),
    "repetition_penalty": Annotated[float, Range(above=0)],
    "min_p": _SHARE | None,
    "importance_sampling_level": Literal["token", "sequence"],
    "loss_type": Literal["grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"],
    "vllm_mode": Literal["colocate", "server"],
    "vllm_importance_sampling_mode": _CORRECTIONS,
}
_ELSEWHERE = ("tf32", "load_best_model_at_end", "report_to")  # right or wrong by the machine, or other fields


def option_faults(where: str, kind: Any, options: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with options for `kind`, a `TrainingConfig`, a sentence each; nothing is loaded."""
    if not is_json(dict(options)):
        yield f"{where} takes numbers, text, lists and dicts of them under TRL's names, got {options!r}"
        return
    found = [fault for name, value in options.items() for fault in _fault(where, kind, name, value)]
    yield from found or _refused(where, kind.arguments, options)


def _fault(where: str, kind: Any, name: str, value: Any) -> Iterator[str]:
    known: dict[str, Any] = {field.name: field.default for field in fields(kind.arguments) if field.init}
    if name in kind.taken:
        yield f"{where}: {name!r} is set by {kind.taken[name]}"
    elif name not in known:
        yield f"{where}: {kind.arguments.__name__} has no option {name!r}{close(name, known)}"
    else:
        limit = _LIMITS.get(name, typing.get_type_hints(kind.arguments)[name])
        found = list(faults(f"{where}[{name!r}]", limit, value))
        least = min(0, known[name]) if isinstance(known[name], int | float) else 0
        if not found and isinstance(value, int | float) and value < least:
            found = [f"{where}[{name!r}] takes a number from 0, got {value!r}"]
        if not found and name == "report_to" and (fault := tracker_fault(value)):
            found = [f"{where}: {fault}"]
        yield from found


def _refused(where: str, arguments: type, options: Mapping[str, Any]) -> Iterator[str]:
    """What TRL's own class says of options together; without a device, which a training is to choose."""
    alone = {"_setup_devices": torch.device("cpu"), "distributed_state": None}
    given = {name: value for name, value in options.items() if name not in _ELSEWHERE}
    try:
        type(arguments.__name__, (arguments,), alone)(output_dir=".", use_cpu=True, bf16=False, **given)
    except (ValueError, TypeError, KeyError, OSError, NotImplementedError) as error:
        yield f"{where}: {arguments.__name__} refuses {dict(options)!r}: {' '.join(str(error).split())}"
