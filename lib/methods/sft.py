"""Supervised fine-tuning (ARM, section 4.1): four formats in one model, with TRL's SFTTrainer as the engine.

Prompt and response are tokenised apart, as they are at inference. Together, a byte-pair tokenizer may
merge the colon that ends the prompt with the tag that opens the response, into a token never seen later.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
import trl
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from lib.checked import Range
from lib.formats import ReasoningFormat, detect_format
from lib.methods.base import Count, TrainingConfig, by_name
from lib.methods.sft_rows import IGNORED, by_length, encode_rows, masking_faults, read_rows
from lib.methods.training import (
    Facts,
    Rows,
    device_memory_mb,
    load_trainable,
    prepare,
    train_policy,
    trainer_arguments,
)
from lib.runs import Run

FORMATS: list[ReasoningFormat | None] = [*ReasoningFormat, None]
OPENING = 12  # tokens that surely hold the opening tag
OPENING_WEIGHT = 0.25  # of a token of the opening tag, where responses weigh the same


@dataclass(frozen=True, kw_only=True)
class SFTConfig(TrainingConfig):
    """How to fine-tune; the defaults are ARM's (appendix D.1 and its train.yaml) with QLoRA for LoRA.

    `batch_size` counts responses per step over all processes; `micro_batch_size` is what one holds at once.
    `new_tokens` names tokens that the base has not learnt, each with the known token from whose embedding it
    starts; the embeddings are then trained.
    """

    arguments: ClassVar[type] = trl.SFTConfig
    taken: ClassVar[dict[str, str]] = {
        **TrainingConfig.taken,
        **by_name("max_steps", "max_length"),
        **dict.fromkeys(("packing", "padding_free"), "the loss, which needs one response a row"),
        **dict.fromkeys(("loss_type", "label_smoothing_factor"), "weighting"),
        "num_train_epochs": "epochs",
        "warmup_steps": "warmup_share",
        "logging_steps": "log_every",
        **dict.fromkeys(("eval_strategy", "eval_steps"), "save_every"),
        "per_device_eval_batch_size": "micro_batch_size",
    }

    weights: Literal["full", "lora", "qlora"] = "qlora"
    learning_rate: Annotated[float, Range(above=0, high=1)] = 2e-4
    epochs: Annotated[float, Range(above=0)] = 6
    max_steps: Annotated[int, Range(-1)] = -1  # -1: as many as `epochs` takes
    batch_size: Count = 128
    warmup_share: Annotated[float, Range(0, below=1)] = 0.1
    max_length: Count = 4096  # tokens; longer rows are left out
    weighting: Literal["token", "response"] = "token"
    new_tokens: Mapping[str, str] = field(default_factory=dict)
    log_every: Count = 10
    save_every: Count = 100  # validates as often

    @classmethod
    def cpu(cls, base: str = "dial-base", **changes: Any) -> Self:
        """For the dial world: 350 steps, a few minutes on one core.

        A real tokenizer spells a tag from pieces that the base knows. Here a tag is one token, new to the
        base, and it never led to an answer. After `shows` the base knows what to do, so `<ANSWER>` starts
        there. (One run each: started from its own embedding, direct answers stayed at chance for 300 steps.)
        """
        small: dict[str, Any] = {"lora_rank": 16, "learning_rate": 6e-3, "max_steps": 350, "save_every": 50}
        small |= {"batch_size": 64, "micro_batch_size": 16, "max_length": 256}
        small |= {"precision": "float32", "gradient_checkpointing": False}
        small |= {"new_tokens": {ReasoningFormat.DIRECT.prefix: "shows"}}
        return cls(base=base, **small | changes)


def row_formats(labels: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> list[ReasoningFormat | None]:
    """The format of each row's response, read from how it opens."""
    opening = [row[row != IGNORED][:OPENING] for row in labels]
    return [detect_format(text) for text in tokenizer.batch_decode(opening)]


def loss_weights(labels: torch.Tensor, openings: torch.Tensor, weighting: str) -> torch.Tensor:
    """The weight of each target in the mean, (B, T) like `labels`: 0 where there is no loss.

    "token" weighs all tokens equally (ARM), so a long response counts for more. "response" weighs a token by
    1 / length of its response. Only the opening tag, of `openings` (B,) tokens, weighs the same everywhere:
    weighted by length too, it would teach the model to prefer short formats.
    """
    learnt = labels != IGNORED
    if weighting == "token":
        return learnt.float()
    is_opening = learnt.cumsum(1) <= openings[:, None]
    return torch.where(is_opening, OPENING_WEIGHT, 1 / learnt.sum(1, keepdim=True)) * learnt


class SFTTrainer(trl.SFTTrainer):
    """TRL's trainer with a choice of loss weighting, and the loss of each format in the logs."""

    def __init__(self, *arguments: Any, weighting: str = "token", **named: Any):
        super().__init__(*arguments, **named)
        self.weighting = weighting
        prefixes = [format.prefix for format in ReasoningFormat]
        ids = self.processing_class(prefixes, add_special_tokens=False).input_ids
        self._openings = [*map(len, ids), 1]  # tokens of each format's tag
        self._losses: dict[str, torch.Tensor] = {}  # mode: per format and in all, sum of losses and tokens
        self._tokens, self._since = 0, time.monotonic()

    def get_batch_samples(self, *arguments: Any, **named: Any) -> tuple[list, Any]:
        """The micro-batches of a step, with rows of like length together: padding is not computed."""
        batches, count = super().get_batch_samples(*arguments, **named)
        return by_length(batches) if len(batches) > 1 else batches, count

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(**inputs, use_cache=False, fused_lm_head=True)
        losses = -outputs.log_probs  # (B, T - 1), 0 where there is no loss
        found = [FORMATS.index(format) for format in row_formats(inputs["labels"], self.processing_class)]
        formats = torch.tensor(found, device=losses.device)
        self._count(inputs, formats, losses.detach())
        openings = torch.tensor(self._openings, device=losses.device)[formats]
        weights = loss_weights(inputs["labels"], openings, self.weighting)[:, 1:]
        count = weights.sum() if self.weighting == "token" else len(formats)
        if num_items_in_batch is None:  # validation, or Trainer divides by the micro-batches itself
            loss = (losses * weights).sum() / count
        elif self.weighting == "token":  # of the whole step, in all processes, whose gradients are averaged
            loss = (losses * weights).sum() / num_items_in_batch * self.accelerator.num_processes
        else:
            loss = (losses * weights).sum() / count / self.current_gradient_accumulation_steps
        return (loss, outputs) if return_outputs else loss

    def _count(self, inputs: Mapping[str, torch.Tensor], formats: torch.Tensor, losses: torch.Tensor) -> None:
        """Add a batch to the sums that `log` reports."""
        mode = "train" if self.model.training else "eval"
        cells = formats[:, None].expand_as(losses).flatten()
        sums = torch.zeros(len(FORMATS), 2, device=losses.device)
        sums[:, 0].index_add_(0, cells, losses.flatten().float())
        sums[:, 1].index_add_(0, cells, (inputs["labels"][:, 1:] != IGNORED).flatten().float())
        self._losses[mode] = self._losses.get(mode, 0) + sums
        if mode == "train":
            self._tokens += int(inputs["attention_mask"].sum())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        start = "" if mode == "train" else "eval_"
        if mode in self._losses:
            sums = self.accelerator.reduce(self._losses.pop(mode), "sum")
            for format, (loss, count) in zip(ReasoningFormat, sums.tolist(), strict=False):
                if count:
                    logs[f"{start}loss_{format}"] = loss / count
            logs[f"{start}perplexity"] = math.exp(min(50.0, (sums[:, 0].sum() / sums[:, 1].sum()).item()))
        if mode == "train" and self._tokens:
            seconds = time.monotonic() - self._since
            tokens = self.accelerator.reduce(torch.tensor(self._tokens, device=self.args.device), "sum")
            logs |= {"tokens_per_second": tokens.item() / seconds, "memory_mb": device_memory_mb()}
        self._tokens, self._since = 0, time.monotonic()
        super().log(logs, start_time)


def make_trainer(config: SFTConfig, rows: Rows, validation_rows: Rows, run: Run) -> SFTTrainer:
    """The trainer of a run on rows with `prompt` and `completion`; nothing is trained yet.

    A first batch that would teach the wrong thing is a ValueError.
    """
    set_seed(config.seed)
    options: dict[str, Any] = {"num_train_epochs": config.epochs, "warmup_steps": config.warmup_share}
    options |= {"lr_scheduler_type": "cosine", "per_device_eval_batch_size": config.micro_batch_size}
    options |= {"logging_steps": config.log_every, "logging_first_step": True}
    options |= {"eval_strategy": "steps", "eval_steps": config.save_every, "save_steps": config.save_every}
    options |= {"load_best_model_at_end": True, "save_total_limit": 2}  # the best and the last
    options |= {"metric_for_best_model": "eval_perplexity", "greater_is_better": False}
    arguments = trainer_arguments(config, run.checkpoint, config.batch_size, **options)
    model, tokenizer = load_trainable(config, config.new_tokens)
    train, watched = (encode_rows(some, tokenizer, config.max_length) for some in (rows, validation_rows))
    data = {"train_dataset": train, "eval_dataset": watched, "processing_class": tokenizer}
    trainer = SFTTrainer(model=model, args=arguments, weighting=config.weighting, **data)
    prepare(trainer, config)
    first = next(iter(trainer.get_train_dataloader()))
    if faults := masking_faults(first, tokenizer.eos_token_id):
        raise ValueError("The first batch would teach the wrong thing: " + "; ".join(faults))
    return trainer


def train_sft(
    config: SFTConfig,
    rows: Rows,
    validation_rows: Rows,
    run: Run,
    *,
    stop_at: int | None = None,
    say: Callable[[str], None] | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Facts]:
    """Train, or go on where the run folder stopped: the best model, its tokenizer, and what it took.

    As `lib.methods.fit.fit`; the result is an adapter for `peft`, or the whole model.
    """

    def describe(trainer: SFTTrainer) -> Facts:
        logged = [row["tokens_per_second"] for row in run.metrics() if "tokens_per_second" in row]
        facts: Facts = {"rows": len(rows), "too_long": len(rows) - len(trainer.train_dataset)}
        facts |= {"best_step": trainer.state.best_global_step, "perplexity": trainer.state.best_metric}
        facts["tokens_per_second"] = round(statistics.median(logged))
        facts["model_mb"] = round(trainer.model.get_memory_footprint() / 2**20, 2)
        return facts | {"trained_parameters": trainer.model.num_parameters(only_trainable=True)}

    build = partial(make_trainer, config, rows, validation_rows, run)
    more: dict[str, Any] = {"merge": False, "say": say, "stop_at": stop_at}
    return train_policy(config, rows, validation_rows, run, build, describe, **more)


def train(call: Mapping[str, Any]) -> Facts:
    """`train_sft` as `lib.engines.launch` calls it, in one process or several; returns what it took.

    `call`: "sft" (fields of SFTConfig), "rows" and "validation_rows" (JSONL files), and the run's "folder".
    """
    rows, validation_rows = (read_rows(call[name]) for name in ("rows", "validation_rows"))
    run = Run(Path(call["folder"]), call)
    return train_sft(SFTConfig(**call["sft"]), rows, validation_rows, run, say=print)[2]
