"""What all trainings share: arguments, precision, resuming, a safe end, loading, little noise."""

import json
import os
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate.utils import set_seed
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, Trainer

from lib.methods.base import TrainingConfig
from lib.methods.callbacks import NothingLeftError, RunCallback
from lib.policies.adapters import add_lora, merge_adapter, start_embeddings
from lib.policies.load import fingerprint, load_policy, load_tokenizer, quiet
from lib.runs import Run, digest, end_by, heard, is_first_process, peak_memory_mb, runs_folder

Rows = Sequence[Mapping[str, Any]]
Facts = dict[str, Any]
PROJECT = "adaptive-reasoning"  # where trackers gather the runs


def trainer_arguments(config: TrainingConfig, folder: Path, batch_size: int, **options: Any) -> Any:
    """The configuration as TRL writes it, with steps of `batch_size` responses over all processes.

    A tracker that `trainer` names shows the run as its folder, smoke/03_ada_grpo/grpo, in one project.
    """
    os.environ.setdefault("WANDB_PROJECT", PROJECT)  # wandb's callback looks nowhere else
    accelerated = torch.accelerator.is_available()
    shared = config.options | {"data_seed": config.seed, "bf16": config.precision == "bfloat16"}
    shared |= {"per_device_train_batch_size": config.micro_batch_size, "ddp_find_unused_parameters": False}
    shared |= {"use_cpu": not accelerated, "dataloader_pin_memory": accelerated}
    run, runs = folder.parent, runs_folder()
    name = run.relative_to(runs).as_posix() if run.is_relative_to(runs) else run.name
    shared |= {"output_dir": str(folder), "run_name": name, "project": PROJECT}
    shared |= {"report_to": "none", "disable_tqdm": True}
    arguments = config.arguments(**shared | options | dict(config.trainer))
    steps = accumulation_steps(batch_size, config.micro_batch_size, arguments.world_size)
    arguments.gradient_accumulation_steps = steps
    return arguments


def accumulation_steps(batch_size: int, micro_batch_size: int, processes: int) -> int:
    """Micro-batches per step, so that a step holds `batch_size` responses however many processes share it."""
    steps, rest = divmod(batch_size, micro_batch_size * processes)
    if rest or not steps:
        shared = f"shared by {processes} processes in micro-batches of {micro_batch_size}"
        remedy = f"make batch_size a multiple of {micro_batch_size * processes}"
        raise ValueError(f"a batch of {batch_size} cannot be {shared}: {remedy}")
    return steps


def load_trainable(
    config: TrainingConfig, new_tokens: Mapping[str, str] | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base as it is trained: whole, or with LoRA, on NF4 where asked; `new_tokens` as in `SFTConfig`.

    What is trained in full stays in float32, or a small update is lost.
    """
    full, rank = config.weights == "full", config.lora_rank
    dtype = torch.float32 if full else config.dtype
    model, tokenizer = load_policy(config.base, quantised=config.weights == "qlora", dtype=dtype)
    start_embeddings(model, tokenizer, new_tokens or {})
    if not full:
        model = add_lora(model, rank=rank, alpha=2 * rank, train_embeddings=bool(new_tokens))
    return model, tokenizer


def prepare(trainer: Trainer, config: TrainingConfig) -> None:
    """Keep what is trained in full precision if asked.

    A checkpoint's last file, and the end of the one before, wait for what other processes write to it.
    """
    save = trainer._save_rng_state  # the last thing that all of them save

    def save_together(folder: str) -> None:
        save(folder)
        trainer.accelerator.wait_for_everyone()

    trainer._save_rng_state = save_together
    if config.precision == "float32":
        # TRL keeps adapters on a quantised base in bfloat16, where a small update is rounded away.
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()


def train_policy(
    config: TrainingConfig,
    rows: Rows,
    validation_rows: Rows,
    run: Run,
    build: Callable[[], Trainer],
    describe: Callable[[Trainer], Facts],
    *,
    merge: bool,
    say: Callable[[str], None] | None,
    stop_at: int | None,
    **more: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Facts]:
    """`train_once` for a policy on rows: the model, its tokenizer, and what it took.

    What was trained before is loaded (see `load_trained`). `more` are settings beside the configuration.
    """
    callback = RunCallback(run, say=say, stop_at=stop_at, shown=config.shown)
    settings = config.as_json() | {"start": fingerprint(config.base), "rows": digest(list(rows))}
    settings["validation_rows"] = digest(list(validation_rows))
    trainer, facts = train_once(run, settings | more, build, callback, describe)
    facts = {"config": config.as_json()} | facts
    if trainer:
        return trainer.model.eval(), trainer.processing_class, facts
    return *load_trained(config, run, merge=merge), facts


def load_trained(
    config: TrainingConfig, run: Run, *, merge: bool = True
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The policy that a finished run left, with its tokenizer; an adapter is merged, or put on its base."""
    quantised, result = config.weights == "qlora", run.checkpoint / "result"
    if config.weights == "full":
        return load_policy(result, dtype=config.dtype)
    if merge:
        model = merge_adapter(config.base, result, quantised=quantised, dtype=config.dtype)
    else:
        model, _ = load_policy(config.base, quantised=quantised, dtype=config.dtype)
        model = PeftModel.from_pretrained(model, str(result)).eval()
    return model, load_tokenizer(result)


def train_once(
    run: Run,
    settings: Mapping[str, Any],
    build: Callable[[], Trainer],
    callback: RunCallback,
    describe: Callable[[Trainer], Facts],
) -> tuple[Trainer | None, Facts]:
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


def run_training(trainer: Trainer, run: Run, callback: RunCallback) -> Facts:
    """Train, or go on where `run.checkpoint` was left; returns what it took.

    At the last step the result is saved to `run.checkpoint / "result"`. After Ctrl-C all is saved and
    KeyboardInterrupt raised; SIGTERM and SIGHUP end the process then.
    """
    resume_from = last_checkpoint(run.checkpoint)
    step = _step(resume_from) if resume_from else -1
    if trainer.is_world_process_zero():
        run.rewind(step)
    if resume_from:
        trainer.args.eval_on_start = False  # that was done, and is logged
        # As many processes as before find their random numbers in the checkpoint; others draw new ones.
        set_seed(trainer.args.seed + step, device_specific=True)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(callback)
    begun = time.monotonic()
    with heard(callback.hear):
        try:
            trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
        except NothingLeftError:
            if trainer.state.best_model_checkpoint and trainer.args.load_best_model_at_end:
                trainer._load_best_model()
    if callback.stopped_by:
        trainer.accelerator.wait_for_everyone()  # a process that ends is the end of all
        end_by(callback.stopped_by, f"step {trainer.state.global_step}")
    if trainer.state.global_step == trainer.state.max_steps:
        trainer.save_model(str(run.checkpoint / "result"))
    facts = {"steps": trainer.state.global_step, "seconds": round(time.monotonic() - begun, 1)}
    facts |= {"threads": torch.get_num_threads(), "processes": trainer.accelerator.num_processes}
    return facts | {"resumed": resume_from is not None, "memory_mb": round(device_memory_mb())}


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole: no kill, full disk or lost write cut it short."""
    states = folder.glob("checkpoint-*/trainer_state.json")  # written last
    newest_first = sorted((path.parent for path in states), key=_step, reverse=True)
    return next((checkpoint for checkpoint in newest_first if _is_whole(checkpoint)), None)


def _is_whole(checkpoint: Path) -> bool:
    """Whether each file ends as its format says: weights by their header, torch's as a zip archive does."""
    try:
        for file in checkpoint.rglob("*.*"):
            if file.suffix == ".safetensors":
                with safe_open(file, "pt"):
                    pass
            elif file.suffix == ".json":
                json.loads(file.read_bytes())
            elif file.suffix in (".bin", ".pt", ".pth") and not zipfile.is_zipfile(file):
                return False
    except (ValueError, OSError, SafetensorError):
        return False
    return True


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def device_memory_mb() -> float:
    """The most memory used so far, in MB: of the accelerator where there is one, else of the process."""
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else peak_memory_mb()


@contextmanager
def no_noise() -> Iterator[None]:
    """Keep progress bars and warnings about the libraries' own calls out of the notebook."""
    datasets.disable_progress_bars()
    # Reloading the best of a model with tied embeddings, transformers misses the tied copy.
    with warnings.catch_warnings(), quiet("transformers"):
        warnings.simplefilter("ignore", FutureWarning)  # TRL's calls of its own deprecated names
        yield
