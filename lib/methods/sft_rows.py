"""Rows for supervised fine-tuning: read, encoded with labels, and checked for what would mislead."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerBase

from lib.sources.files import RowError, file_rows

IGNORED = -100  # the label of a token without loss


def encode(row: Mapping[str, str], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """Token ids and labels of a row: no loss on the prompt, loss on the completion and the end token."""
    prompt = tokenizer(row["prompt"]).input_ids
    response = tokenizer(row["completion"], add_special_tokens=False).input_ids
    response = [*response, tokenizer.eos_token_id]
    return {"input_ids": prompt + response, "labels": [IGNORED] * len(prompt) + response}


def encode_rows(
    rows: Sequence[Mapping[str, str]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Dataset:
    """All rows encoded, without those that are too long: half a response would teach not to end."""
    encoded = (encode(row, tokenizer) for row in rows)
    kept = [row for row in encoded if len(row["input_ids"]) <= max_length]
    if not kept:
        raise ValueError(f"none of the {len(rows)} rows fits into {max_length} tokens")
    return Dataset.from_list(kept)


def read_rows(path: str | Path, texts: Sequence[str] = ("prompt", "completion")) -> list[dict[str, Any]]:
    """The rows of a JSONL file, with text in the columns `texts`; a ValueError names the first bad line."""
    rows: list[dict[str, Any]] = []
    for number, row in file_rows(path):
        if isinstance(row, RowError):
            raise ValueError(f"{path}, line {number}: {row}")
        for name in texts:
            if not isinstance(row.get(name), str) or not row[name]:
                raise ValueError(f"{path}, line {number}: {name!r} must be text that is not empty")
        rows.append(dict(row))
    return rows


def by_length(batches: Sequence[Mapping[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    """The rows of a step's micro-batches, put together anew by length, each cut after its longest row."""
    width = max(batch["input_ids"].shape[1] for batch in batches)

    def widened(values: torch.Tensor, name: str) -> torch.Tensor:
        fill = IGNORED if name == "labels" else 0  # ids of padding are masked, whatever they are
        return pad(values, (0, width - values.shape[1]), value=fill)

    joined = {name: torch.cat([widened(batch[name], name) for batch in batches]) for name in batches[0]}
    lengths, order = joined["attention_mask"].sum(1).sort(stable=True)
    parts = zip(order.chunk(len(batches)), lengths.chunk(len(batches)), strict=True)
    cut = [(rows, int(ends.max())) for rows, ends in parts]
    return [{name: values[rows, :end] for name, values in joined.items()} for rows, end in cut]


def masking_faults(batch: Mapping[str, torch.Tensor], eos_token_id: int) -> list[str]:
    """What is wrong with the labels of a batch, in words; nothing in a sound one.

    Training looks well all the same. No end token and one without loss (as where padding is the end token
    and is masked by its id) are one fault: the end is not taught. The other is loss on the prompt.
    """
    labels, ids, real = batch["labels"], batch["input_ids"], batch["attention_mask"].bool()
    rows, places = torch.arange(len(ids)), torch.arange(ids.shape[1])
    first, last = real.int().argmax(1), (real * places).argmax(1)  # of the tokens that are no padding
    found = {
        "do not end with the end token": ids[rows, last] != eos_token_id,
        "have no loss on their last token": labels[rows, last] == IGNORED,
        "have loss on their first token, so on the prompt": labels[rows, first] != IGNORED,
        "have loss on padding": ((labels != IGNORED) & ~real).any(1),
    }
    return [f"{wrong.sum()} of {len(ids)} rows {fault}" for fault, wrong in found.items() if wrong.any()]
