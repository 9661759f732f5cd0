"""Pre-train the base model of the dial world on untagged text, with the Trainer of transformers.

The corpus is what people might write about dials: mostly an answer alone to an easy question, a few
jotted digits to a medium one, a program or worked lines to a hard one. So the base learns the skills,
and that style goes with difficulty, but not the response formats: SFT has those to teach.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset, SequentialSampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from lib.dial.oracle import oracle_format
from lib.dial.responses import untagged_response
from lib.dial.tokenizer import dial_vocabulary, new_dial_model
from lib.dial.world import MAX_DEPTH, TIERS, Question, sample_questions
from lib.formats import ReasoningFormat
from lib.methods.callbacks import RunCallback
from lib.methods.training import train_once
from lib.policies.load import load_policy
from lib.runs import Run, digest
from lib.tasks import FRAME

STYLE_WEIGHT = 0.25  # about the mean of 1 / sqrt(tokens) over the corpus


@dataclass(frozen=True)
class PretrainConfig:
    """How dial-base is made; the defaults make the shipped checkpoint."""

    seed: int = 0
    steps: int = 3600
    documents_per_step: int = 96
    learning_rate: float = 3e-3
    warmup_steps: int = 100
    growing_steps: int = 1000  # questions grow from depth 2 to 12 meanwhile
    tier_mix: tuple[float, ...] = (0.3, 0.4, 0.3)  # easy, medium, hard, once they have grown
    matching_style: float = 0.6  # share of responses in the cheapest style that is right
    copying: float = 0.03  # share of documents that only repeat words, tags among them
    row_length: int = 256
    save_every: int = 200


class Documents(Protocol):
    """Pairs of prompt and response, by their number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[str, str]: ...


class Corpus(Dataset):
    """Documents (prompt, response) of the base's corpus; document i is the same on every machine."""

    def __init__(self, config: PretrainConfig):
        self.config = config
        self.words = [word for word in dial_vocabulary() if not word.startswith(("<pad", "<end", "<unk"))]

    def __len__(self) -> int:
        return self.config.steps * self.config.documents_per_step

    def __getitem__(self, index: int) -> tuple[str, str]:
        rng = random.Random(f"{self.config.seed}|{index}")
        if rng.random() < self.config.copying:
            return self._copying(rng)
        depth = self._depth(rng, index // self.config.documents_per_step)
        question = sample_questions(1, seed=rng.randrange(2**63), depths=[depth])[0]
        return question.prompt, untagged_response(question, self._style(rng, question))

    def _depth(self, rng: random.Random, step: int) -> int:
        """Shallow questions first, then the tiers as `tier_mix` says."""
        if step < self.config.growing_steps:
            deepest = 2 + (MAX_DEPTH - 2) * step // self.config.growing_steps
            return rng.randint(1, deepest)
        return rng.choice(rng.choices(list(TIERS.values()), self.config.tier_mix)[0])

    def _style(self, rng: random.Random, question: Question) -> ReasoningFormat:
        """Mostly the cheapest style that is right, sometimes any other: as people write."""
        cheapest = oracle_format(question.depth)
        if cheapest is not None and rng.random() < self.config.matching_style:
            return cheapest
        return rng.choice([style for style in ReasoningFormat if style is not cheapest])

    def _copying(self, rng: random.Random) -> tuple[str, str]:
        """Words to repeat. A real tokenizer spells tags from pieces a base has met; here one token is one
        tag, so the base must meet it as a word, or nothing could be taught about it later."""
        text = " ".join(rng.choices(self.words, k=rng.randint(3, 10)))
        return FRAME.format(question=f"Say {text}"), text


def pack(
    documents: Sequence[tuple[Sequence[int], Sequence[int]]], row_length: int
) -> dict[str, torch.Tensor]:
    """Pack (prompt ids, response ids) into rows of `row_length` tokens, longest first, without cutting any.

    `position_ids` start at 0 in every document, from which transformers keeps documents apart in attention.
    `weights` are 0 on prompts and padding, and 1 / sqrt(tokens) on a response: with equal weights the long
    responses drown the short ones, which are harder to learn. The first token chooses the style; it weighs
    the same in all, so that the model learns how often each style is used. Tensors are (rows, row_length).
    """
    rows: list[list[tuple[Sequence[int], Sequence[int]]]] = []
    free: list[int] = []
    for document in sorted(documents, key=lambda document: -sum(map(len, document))):
        size = sum(map(len, document))
        if size > row_length:
            raise ValueError(f"a document of {size} tokens does not fit into a row of {row_length}")
        row = next((index for index, room in enumerate(free) if room >= size), len(rows))
        if row == len(rows):
            rows.append([])
            free.append(row_length)
        rows[row].append(document)
        free[row] -= size
    batch = {
        name: torch.zeros(len(rows), row_length, dtype=torch.long) for name in ("input_ids", "position_ids")
    }
    batch["weights"] = torch.zeros(len(rows), row_length)
    for index, filled in enumerate(rows):
        place = 0
        for prompt, response in filled:
            end = place + len(prompt) + len(response)
            batch["input_ids"][index, place:end] = torch.tensor([*prompt, *response])
            batch["position_ids"][index, place:end] = torch.arange(end - place)
            batch["weights"][index, place + len(prompt) : end] = len(response) ** -0.5
            batch["weights"][index, place + len(prompt)] = STYLE_WEIGHT
            place = end
        batch["position_ids"][index, place:] = torch.arange(row_length - place)
    return batch


def response_loss(logits: torch.Tensor, input_ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean of the next-token loss: logits (R, T, V), input_ids and weights (R, T) -> scalar."""
    losses = cross_entropy(logits[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten(), reduction="none")
    shifted = weights[:, 1:].flatten()
    return (losses * shifted).sum() / shifted.sum()


class PretrainTrainer(Trainer):
    """Trainer with the response loss, on documents in their given order."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        weights = inputs.pop("weights")
        outputs = model(**inputs, use_cache=False)
        loss = response_loss(outputs.logits, inputs["input_ids"], weights)
        return (loss, outputs) if return_outputs else loss

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)


def pretrain(
    config: PretrainConfig,
    tokenizer: PreTrainedTokenizerBase,
    run: Run,
    *,
    model: PreTrainedModel | None = None,
    corpus: Documents | None = None,
    stop_at: int | None = None,
    say: Callable[[str], None] | None = None,
) -> tuple[PreTrainedModel, Mapping[str, Any]]:
    """Train from scratch, or go on where the run folder stopped; gives the model and what it took.

    `model` starts from another model, `corpus` reads other (prompt, response) documents, in their order.
    `stop_at` ends early but keeps the schedule of the full run, so the first steps are the same steps.
    Ctrl-C saves and raises KeyboardInterrupt; the same call then resumes. What was trained to the end with
    the same settings is not trained again.
    """
    model = new_dial_model(seed=config.seed) if model is None else model
    corpus = Corpus(config) if corpus is None else corpus
    arguments = TrainingArguments(
        output_dir=str(run.checkpoint),
        max_steps=config.steps,
        per_device_train_batch_size=config.documents_per_step,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup_steps,
        weight_decay=0.01,
        adam_beta2=0.98,
        max_grad_norm=1.0,
        logging_steps=10,
        logging_first_step=True,
        save_steps=config.save_every,
        save_total_limit=2,
        seed=config.seed,
        data_seed=config.seed,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.accelerator.is_available(),
    )
    counted = 0

    def collate(documents: Sequence[tuple[str, str]]) -> dict[str, torch.Tensor]:
        nonlocal counted
        prompts = tokenizer([prompt for prompt, _ in documents]).input_ids
        responses = tokenizer([response for _, response in documents]).input_ids
        ended = [[*ids, tokenizer.eos_token_id] for ids in responses]
        counted += sum(map(len, prompts)) + sum(map(len, ended))
        return pack(list(zip(prompts, ended, strict=True)), config.row_length)

    def build() -> PretrainTrainer:
        return PretrainTrainer(
            model=model,
            args=arguments,
            train_dataset=corpus,
            data_collator=collate,
            processing_class=tokenizer,
        )

    settings = asdict(config) | {
        "start": digest(dict(model.state_dict())),
        "corpus": digest([corpus[index] for index in range(0, len(corpus), max(1, len(corpus) // 100))]),
    }
    callback = RunCallback(run, say=say, stop_at=stop_at)
    trainer, facts = train_once(run, settings, build, callback, lambda trainer: {"tokens": counted})
    model = trainer.model.eval() if trainer else load_policy(run.checkpoint / "result")[0]
    return model, {"config": asdict(config)} | facts
