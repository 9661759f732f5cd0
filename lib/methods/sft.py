"""Supervised fine-tuning (ARM, section 4.1): four formats in one model, with TRL's SFTTrainer as the engine.

Prompt and response are tokenised apart, as they are at inference. Together, a byte-pair tokenizer may
merge the colon that ends the prompt with the tag that opens the response, into a token never seen later.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
import trl
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from lib.checked import Range
from lib.formats import ReasoningFormat, detect_format
from lib.methods.base import Count, TrainingConfig
from lib.methods.callbacks import RunCallback
from lib.methods.sft_rows import IGNORED, document_numbers, encode_rows, masking_faults, read_rows
from lib.methods.training import (
    accumulation_steps,
    device_memory_mb,
    load_result,
    prepare,
    shared_arguments,
    train_once,
    trained_dtype,
)
from lib.policies.adapters import add_lora, start_embeddings
from lib.policies.load import fingerprint, load_policy
from lib.policies.memory import memory_mb, trained_parameters
from lib.runs import Run, digest

OPENING = 12  # tokens that surely hold the opening tag
OPENING_WEIGHT = 0.25  # of a token of the opening tag, where responses weigh the same


@dataclass(frozen=True, kw_only=True)
class SFTConfig(TrainingConfig):
    """How to fine-tune; the defaults are ARM's (appendix D.1 and its train.yaml) with QLoRA for LoRA.

    `batch_size` counts responses per step over all processes; `micro_batch_size` is what one holds at once.
    With `packing` both count packed rows, each of several responses. `new_tokens` names tokens that the base
    has not learnt, each with the known token whose embedding it starts from; the embeddings are then trained.
    """

    arguments: ClassVar[type] = trl.SFTConfig
    taken: ClassVar[dict[str, str]] = TrainingConfig.taken | {
        "num_train_epochs": "epochs",
        "max_steps": "max_steps",
        "warmup_steps": "warmup_share",
        "packing": "packing",
        "max_length": "max_length",
        "logging_steps": "log_every",
        "eval_strategy": "save_every",
        "eval_steps": "save_every",
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
    packing: bool = False
    new_tokens: Mapping[str, str] = field(default_factory=dict)
    log_every: Count = 10
    save_every: Count = 100  # validates as often

    @classmethod
    def paper(cls, base: str, **changes: Any) -> Self:
        """ARM's settings for a real model on an accelerator."""
        return cls(base=base, **changes)

    @classmethod
    def cpu(cls, base: str = "dial-base", **changes: Any) -> Self:
        """For the dial world: 350 steps, about three minutes on one core.

        A real tokenizer spells a tag from pieces that the base knows. Here a tag is one token, new to the
        base, and it never led to an answer. After `shows` the base knows what to do, so `<ANSWER>` starts
        there. (One run each: started from its own embedding, direct answers stayed at chance for 300 steps.)
        """
        small: dict[str, Any] = {
            "lora_rank": 16,
            "learning_rate": 6e-3,
            "max_steps": 350,
            "batch_size": 64,
            "micro_batch_size": 64,
            "max_length": 256,
            "precision": "float32",
            "gradient_checkpointing": False,
            "new_tokens": {ReasoningFormat.DIRECT.prefix: "shows"},
            "save_every": 50,
        }
        return cls(base=base, **small | changes)


# ---- loss --------------------------------------------------------------------------------------


def target_places(labels: torch.Tensor, documents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The place of each target in its response, (B, T), and the targets of each document, (D,)."""
    learnt = labels != IGNORED
    lengths = torch.bincount(documents[learnt], minlength=int(documents.max()) + 1)
    before = lengths.cumsum(0) - lengths  # targets in earlier documents
    return (learnt.flatten().cumsum(0) - 1).view_as(labels) - before[documents], lengths


def document_formats(
    batch: Mapping[str, torch.Tensor], tokenizer: PreTrainedTokenizerBase
) -> list[ReasoningFormat | None]:
    """The format of each document of a batch, read from how its response opens."""
    documents, labels = document_numbers(batch), batch["labels"]
    places, lengths = target_places(labels, documents)
    opens = (labels != IGNORED) & (places < OPENING)
    ids = labels[opens].split(lengths.clamp(max=OPENING).tolist())
    return [detect_format(text) for text in tokenizer.batch_decode(ids)]


def loss_weights(
    labels: torch.Tensor, documents: torch.Tensor, openings: torch.Tensor, weighting: str
) -> torch.Tensor:
    """The weight of each target in the mean, (B, T) like `labels`: 0 where there is no loss.

    "token" weighs all tokens equally (ARM), so a long response counts for more. "response" weighs a token by
    1 / length of its response. Only the opening tag, of `openings` (D,) tokens in each document, weighs the
    same everywhere: weighted by length too, it would teach the model to prefer short formats.
    """
    learnt = labels != IGNORED
    if weighting == "token":
        return learnt.float()
    places, lengths = target_places(labels, documents)
    return torch.where(places < openings[documents], OPENING_WEIGHT, 1 / lengths[documents]) * learnt


class SFTTrainer(trl.SFTTrainer):
    """TRL's trainer with a choice of loss weighting, and the loss of each format in the logs."""

    def __init__(self, *arguments: Any, weighting: str = "token", **named: Any):
        super().__init__(*arguments, **named)
        self.weighting = weighting
        self._openings: dict[ReasoningFormat | None, int] = {
            format: len(self.processing_class(format.prefix, add_special_tokens=False).input_ids)
            for format in ReasoningFormat
        }
        self._losses: dict[str, torch.Tensor] = {}  # mode: per format and in all, sum of losses and tokens
        self._tokens, self._since = 0, time.monotonic()

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(**inputs, use_cache=False, fused_lm_head=True)
        losses = -outputs.log_probs  # (B, T - 1), 0 where there is no loss
        documents = document_numbers(inputs)
        formats = document_formats(inputs, self.processing_class)
        self._count(inputs, formats, documents[:, 1:], losses.detach())
        openings = torch.tensor([self._openings.get(format, 1) for format in formats], device=losses.device)
        weights = loss_weights(inputs["labels"], documents, openings, self.weighting)[:, 1:]
        count = weights.sum() if self.weighting == "token" else len(formats)
        if num_items_in_batch is None:  # validation, or Trainer divides by the micro-batches itself
            loss = (losses * weights).sum() / count
        elif self.weighting == "token":  # of the whole step, in all processes, whose gradients are averaged
            loss = (losses * weights).sum() / num_items_in_batch * self.accelerator.num_processes
        else:
            loss = (losses * weights).sum() / count / self.current_gradient_accumulation_steps
        return (loss, outputs) if return_outputs else loss

    def _count(
        self,
        inputs: Mapping[str, torch.Tensor],
        formats: Sequence[ReasoningFormat | None],
        documents: torch.Tensor,
        losses: torch.Tensor,
    ) -> None:
        """Add a batch to the sums that `log` reports."""
        mode = "train" if self.model.training else "eval"
        order = [*ReasoningFormat, None]
        places = [order.index(format) for format in formats]
        cells = torch.tensor(places, device=losses.device)[documents].flatten()
        learnt = (inputs["labels"][:, 1:] != IGNORED).flatten()
        sums = torch.zeros(len(order), 2, device=losses.device)
        sums[:, 0].index_add_(0, cells, losses.flatten().float())
        sums[:, 1].index_add_(0, cells, learnt.float())
        self._losses[mode] = self._losses.get(mode, 0) + sums
        if mode == "train":
            self._tokens += int(inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).sum())

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


# ---- training ----------------------------------------------------------------------------------


def make_trainer(
    config: SFTConfig,
    rows: Sequence[Mapping[str, str]],
    validation_rows: Sequence[Mapping[str, str]],
    run: Run,
    *,
    callback: RunCallback | None = None,
) -> SFTTrainer:
    """The trainer of a run on rows with `prompt` and `completion`; nothing is trained yet."""
    set_seed(config.seed)
    full = config.weights == "full"
    options = {
        **shared_arguments(run.checkpoint, seed=config.seed, precision=config.precision),
        "num_train_epochs": config.epochs,
        "max_steps": config.max_steps,
        "per_device_train_batch_size": config.micro_batch_size,
        "per_device_eval_batch_size": config.micro_batch_size,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": config.warmup_share,
        "packing": config.packing,
        "eval_packing": False,
        "max_length": config.max_length,
        "gradient_checkpointing": config.gradient_checkpointing,
        "logging_steps": config.log_every,
        "logging_first_step": True,
        "eval_strategy": "steps",
        "eval_steps": config.save_every,
        "save_steps": config.save_every,
        "save_total_limit": 2,  # the best and the last
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_perplexity",
        "greater_is_better": False,
    }
    arguments = trl.SFTConfig(**options | dict(config.trainer))
    arguments.gradient_accumulation_steps = accumulation_steps(
        config.batch_size, config.micro_batch_size, arguments.world_size
    )
    dtype = trained_dtype(config.precision, full=full)
    model, tokenizer = load_policy(config.base, quantised=config.weights == "qlora", dtype=dtype)
    start_embeddings(model, tokenizer, config.new_tokens)
    if not full:
        rank, embeddings = config.lora_rank, bool(config.new_tokens)
        model = add_lora(model, rank=rank, alpha=2 * rank, train_embeddings=embeddings)
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=encode_rows(rows, tokenizer, config.max_length),
        eval_dataset=encode_rows(validation_rows, tokenizer, config.max_length),
        processing_class=tokenizer,
        weighting=config.weighting,
        callbacks=[callback] if callback else [],
    )
    prepare(trainer, config.precision)
    return trainer


def train_sft(
    config: SFTConfig,
    rows: Sequence[Mapping[str, str]],
    validation_rows: Sequence[Mapping[str, str]],
    run: Run,
    *,
    stop_at: int | None = None,
    say: Callable[[str], None] | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """Train, or go on where the run folder stopped: the best model, its tokenizer, and what it took.

    The result is saved to `run.checkpoint / "result"`: an adapter for `peft`, or the whole model. `stop_at`
    ends early on the schedule of the full run. Ctrl-C saves and raises KeyboardInterrupt; the same call
    then resumes. What was trained to the end before is loaded.
    """
    callback = RunCallback(run, say=say, stop_at=stop_at)

    def build() -> SFTTrainer:
        trainer = make_trainer(config, rows, validation_rows, run, callback=callback)
        first = next(iter(trainer.get_train_dataloader()))
        if faults := masking_faults(first, trainer.processing_class.eos_token_id):
            raise ValueError("The first batch would teach the wrong thing: " + "; ".join(faults))
        return trainer

    def describe(trainer: SFTTrainer) -> dict[str, Any]:
        logged = [row["tokens_per_second"] for row in run.metrics() if "tokens_per_second" in row]
        return {
            "rows": len(rows),
            "too_long": len(rows) - len(trainer.train_dataset) if not config.packing else None,
            "best_step": trainer.state.best_global_step,
            "perplexity": trainer.state.best_metric,
            "tokens_per_second": round(statistics.median(logged)),
            "model_mb": round(memory_mb(trainer.model), 2),
            "trained_parameters": trained_parameters(trainer.model),
        }

    settings = asdict(config) | {
        "start": fingerprint(config.base),
        "rows": digest(list(rows)),
        "validation_rows": digest(list(validation_rows)),
    }
    trainer, facts = train_once(run, settings, build, callback, describe)
    facts = {"config": asdict(config)} | facts
    if trainer:
        return trainer.model.eval(), trainer.processing_class, facts
    quantised = config.weights == "qlora"
    return *load_result(run, config.base, quantised=quantised, dtype=config.dtype), facts


def train(config: Mapping[str, Any]) -> dict[str, Any]:
    """`train_sft` as `lib.launch` calls it, in one process or several; returns what it took.

    `config`: "sft" (fields of SFTConfig), "rows" and "validation_rows" (JSONL files), and the run's "folder".
    """
    rows, validation_rows = read_rows(config["rows"]), read_rows(config["validation_rows"])
    run = Run(Path(config["folder"]), config)
    _, _, facts = train_sft(SFTConfig(**config["sft"]), rows, validation_rows, run, say=print)
    return facts
