"""What the trainings of the course share: arguments, precision, resuming, a safe end, little noise."""

from __future__ import annotations

import json
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import PeftModel
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, Trainer

from lib.methods.callbacks import NothingLeftError, RunCallback
from lib.policies.load import load_policy, quiet
from lib.runs import Run, is_first_process, peak_memory_mb


def shared_arguments(folder: Path, *, seed: int, precision: str) -> dict[str, Any]:
    """What every training gives to TRL's configuration: where it saves, its seeds, no reports."""
    return {
        "output_dir": str(folder),
        "bf16": precision == "bfloat16",
        "use_cpu": not torch.accelerator.is_available(),
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "seed": seed,
        "data_seed": seed,
        "ddp_find_unused_parameters": False,
        "report_to": "none",
        "disable_tqdm": True,
    }


def accumulation_steps(batch_size: int, micro_batch_size: int, processes: int) -> int:
    """Micro-batches per step, so that a step holds `batch_size` responses however many processes share it."""
    steps, rest = divmod(batch_size, micro_batch_size * processes)
    if rest or not steps:
        raise ValueError(
            f"a batch of {batch_size} cannot be shared by {processes} processes in micro-batches of "
            f"{micro_batch_size}: make batch_size a multiple of {micro_batch_size * processes}"
        )
    return steps


def prepare(trainer: Trainer, precision: str) -> None:
    """Keep what is trained in full precision if asked, and the trainer from printing its logs."""
    trainer.remove_callback(PrinterCallback)
    if precision == "float32":
        # TRL keeps adapters on a quantised base in bfloat16, where a small update is rounded away.
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()


def train_once(
    run: Run,
    settings: Mapping[str, Any],
    build: Callable[[], Trainer],
    callback: RunCallback,
    describe: Callable[[Trainer], Mapping[str, Any]] = lambda trainer: {},
) -> tuple[Trainer | None, dict[str, Any]]:
    """Train what `build` makes, or go on where these settings left it: the trainer, and what it took.

    `settings` holds all that decides the result (see `Run.claim`). Where they have been trained to the end
    before, nothing is built: the trainer is None, and the facts are those of then. The result lies in
    `run.checkpoint / "result"`. `describe` adds facts.
    """
    first = is_first_process()
    with run.alone() if first else nullcontext(), no_noise():
        facts = run.claim(settings, say=callback.say if first else None)
        if facts is not None:
            return None, facts
        trainer = build()
        facts = run_training(trainer, run, callback)
        facts |= describe(trainer)
        if first and trainer.state.global_step == trainer.state.max_steps:
            run.keep(facts)
    return trainer, facts


def run_training(trainer: Trainer, run: Run, callback: RunCallback) -> dict[str, Any]:
    """Train, or go on where `run.checkpoint` was left; returns what it took.

    At the last step the result is saved to `run.checkpoint / "result"`. After Ctrl-C all is saved and
    KeyboardInterrupt raised; SIGTERM and SIGHUP end the process then.
    """
    resume_from = last_checkpoint(run.checkpoint)
    if trainer.is_world_process_zero():
        run.rewind(int(resume_from.name.rpartition("-")[2]) if resume_from else -1)
    if resume_from:
        trainer.args.eval_on_start = False  # that was done, and is logged
    begun = time.monotonic()
    try:
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    except NothingLeftError:
        if trainer.state.best_model_checkpoint and trainer.args.load_best_model_at_end:
            trainer._load_best_model()
    finally:
        callback.restore_signals()
    if callback.stopped_by:
        saved = f"saved at step {trainer.state.global_step}; the same call goes on from there"
        if callback.stopped_by != signal.SIGINT:
            print(saved, flush=True)
            signal.raise_signal(callback.stopped_by)
        raise KeyboardInterrupt(saved)
    if trainer.state.global_step == trainer.state.max_steps:
        trainer.save_model(str(run.checkpoint / "result"))
    return {
        "steps": trainer.state.global_step,
        "seconds": round(time.monotonic() - begun, 1),
        "threads": torch.get_num_threads(),
        "processes": trainer.accelerator.num_processes,
        "resumed": resume_from is not None,
        "memory_mb": round(device_memory_mb()),
    }


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that a kill did not cut short: its trainer state is written last."""
    whole = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json") if _is_whole(path)]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _is_whole(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")))
    except ValueError:
        return False


def load_result(
    run: Run, base: str | Path, *, quantised: bool = False, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer that a finished training left; an adapter is put on its base, not merged."""
    result = run.checkpoint / "result"
    if not (result / "adapter_config.json").exists():
        return load_policy(result, dtype=dtype)
    model, _ = load_policy(base, quantised=quantised, dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(result, padding_side="left")
    return PeftModel.from_pretrained(model, str(result)).eval(), tokenizer


def trained_dtype(precision: str, *, full: bool) -> torch.dtype:
    """The type to load weights in: what is trained in full stays in float32, or a small update is lost."""
    return torch.float32 if full else getattr(torch, precision)


def device_memory_mb() -> float:
    """The most memory used so far, in MB: of the accelerator where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_memory_mb()


@contextmanager
def no_noise() -> Iterator[None]:
    """Keep progress bars and warnings about the libraries' own calls out of the notebook."""
    datasets.disable_progress_bars()
    # Reloading the best of a model with tied embeddings, transformers misses the tied copy.
    with warnings.catch_warnings(), quiet("transformers"):
        warnings.simplefilter("ignore", FutureWarning)  # TRL's calls of its own deprecated names
        yield
