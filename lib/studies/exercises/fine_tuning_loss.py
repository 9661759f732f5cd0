"""Your turn in notebook 02, second part: ids and labels of a row, the loss of a batch."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
from tokenizers import Tokenizer, models, processors
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast
from transformers.loss.loss_utils import ForCausalLMLoss

from lib import dial
from lib.methods import sft_rows
from lib.studies.exercises.core import Cases, Check

# ---- labels --------------------------------------------------------------------------------------


_tokenizer = cache(dial.dial_tokenizer)
_SEAM = {"prompt": "Now?:", "completion": "<15>"}


@cache
def _merging() -> PreTrainedTokenizerFast:
    """As some real ones: it begins a text with a token of its own, and melts a colon with what follows."""
    known = {piece: place for place, piece in enumerate(["<start>", "<end>", *"?:<>15Now", ":<"])}
    plain = Tokenizer(models.BPE(vocab=known, merges=[(":", "<")]))
    plain.post_processor = processors.TemplateProcessing(
        single="<start> $A", special_tokens=[("<start>", known["<start>"])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<start>", eos_token="<end>")


def _rows() -> Cases:
    questions = dial.sample_questions(1, seed=0)
    return [(row, _tokenizer()) for row in dial.gold_rows(questions, seed=0)] + [(_SEAM, _merging())]


def _joined(prompt: list[int], completion: list[int], tokenizer: Any) -> dict[str, list[int]]:
    completion = [*completion, tokenizer.eos_token_id]
    return {"input_ids": prompt + completion, "labels": [sft_rows.IGNORED] * len(prompt) + completion}


def _together(row: Any, tokenizer: Any) -> dict[str, list[int]]:
    prompt, ids = (tokenizer(text).input_ids for text in (row["prompt"], row["prompt"] + row["completion"]))
    return _joined(ids[: len(prompt)], ids[len(prompt) :], tokenizer)


def _apart(row: Any, tokenizer: Any, *, prompt: bool, completion: bool) -> dict[str, list[int]]:
    """Tokenised apart, with the tokenizer's own special tokens or without."""
    first, second = (
        tokenizer(row[name], add_special_tokens=special).input_ids
        for name, special in (("prompt", prompt), ("completion", completion))
    )
    return _joined(first, second, tokenizer)


def _changed(row: Any, tokenizer: Any, change: Any) -> dict[str, list[int]]:
    """The labels of `encode`, changed; `change` is given ids, labels and the length of the prompt."""
    sound = sft_rows.encode(row, tokenizer)
    ids, labels = change(sound["input_ids"], sound["labels"], sound["labels"].count(sft_rows.IGNORED))
    return {"input_ids": ids, "labels": labels}


encode = Check(
    "encode",
    sft_rows.encode,
    _rows,
    {
        "The end token is missing: a model that is never taught to stop does not stop.": (
            lambda row, tokenizer: _changed(row, tokenizer, lambda ids, labels, n: (ids[:-1], labels[:-1]))
        ),
        "The prompt carries loss: its labels must be -100.": (
            lambda row, tokenizer: _changed(row, tokenizer, lambda ids, labels, n: (ids, ids))
        ),
        "The end token is there and has no label, so it is not learnt.": (
            lambda row, tokenizer: _changed(
                row, tokenizer, lambda ids, labels, n: (ids, [*labels[:-1], -100])
            )
        ),
        "The labels are shifted. A label stands at its own token; the model shifts them itself.": (
            lambda row, tokenizer: _changed(row, tokenizer, lambda ids, labels, n: (ids, [*labels[1:], -100]))
        ),
        "0 is the id of a token. Only -100 means: no loss here.": (
            lambda row, tokenizer: _changed(
                row, tokenizer, lambda ids, labels, n: (ids, [0] * n + labels[n:])
            )
        ),
        "Labels are ids: on the completion the token's own, not 1.": (
            lambda row, tokenizer: _changed(
                row, tokenizer, lambda ids, labels, n: (ids, labels[:n] + [1] * len(labels[n:]))
            )
        ),
        "The labels are as long as the ids: -100 stands for each token of the prompt.": (
            lambda row, tokenizer: _changed(row, tokenizer, lambda ids, labels, n: (ids, labels[n:]))
        ),
        "Prompt and completion are tokenised together, and at the seam this tokenizer melts `:` and `<` into "
        "one token, which is never seen when the prompt stands alone. Tokenise them apart.": _together,
        "The completion begins with the special token that opens a text. Set `add_special_tokens=False`.": (
            partial(_apart, prompt=True, completion=True)
        ),
        "The prompt has lost the special token with which this tokenizer opens a text.": (
            partial(_apart, prompt=False, completion=False)
        ),
        "The wrong way round: the prompt has labels and the completion none.": (
            lambda row, tokenizer: _changed(
                row, tokenizer, lambda ids, labels, n: (ids, ids[:n] + [-100] * len(ids[n:]))
            )
        ),
    },
)

# ---- the loss of a batch -------------------------------------------------------------------------


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    """Numbers from a bell, the same at each call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _batches() -> Cases:
    labels = torch.tensor([[-100, -100, 3, 1, 4], [-100, 2, 0, -100, -100], [-100, -100, -100, -100, 1]])
    return [
        (drawn(3, 5, 6), labels),
        (3 * drawn(2, 5, 6, seed=1), labels[:2]),
        (torch.zeros(1, 5, 6), labels[:1]),
    ]


def _losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss of each token, (B, T - 1); 0 where there is none."""
    return cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")


def _chosen(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean over tokens with loss of the values (B, T, V) that predict them."""
    mask = labels[:, 1:] != sft_rows.IGNORED
    found = values[:, :-1].gather(2, labels[:, 1:].clamp(min=0)[:, :, None])[:, :, 0]
    return (found * mask).sum() / mask.sum()


def _by_row(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (_losses(logits, labels).sum(1) / (labels != -100).sum(1)).mean()


completion_loss = Check(
    "completion_loss",
    lambda logits, labels: ForCausalLMLoss(logits, labels, logits.shape[-1]),
    _batches,
    {
        "Nothing is shifted: the logits at place k predict the token at place k + 1.": (
            lambda logits, labels: cross_entropy(logits.flatten(0, 1), labels.flatten())
        ),
        "That is the mean over rows of each row's mean. Equation (4) weighs every token the same.": _by_row,
        "Tokens without loss are counted in the denominator. Divide by the number of those with it.": (
            lambda logits, labels: _losses(logits, labels).mean()
        ),
        "That is the sum. Equation (4) divides it by the number of tokens with loss.": (
            lambda logits, labels: _losses(logits, labels).sum()
        ),
        "The sign: a loss is minus the log-probability.": (
            lambda logits, labels: -_losses(logits, labels).sum() / (labels != -100).sum()
        ),
        "Shifted the wrong way: logits look forward, so the last ones have no label.": (
            lambda logits, labels: cross_entropy(
                logits[:, 1:].flatten(0, 1), labels[:, :-1].flatten()
            ).nan_to_num()
        ),
        "That is the mean over responses. Equation (4) divides by the number of tokens with loss.": (
            lambda logits, labels: _losses(logits, labels).sum() / len(labels)
        ),
        "A probability is not its logarithm: log_softmax in place of softmax.": (
            lambda logits, labels: -_chosen(logits.softmax(2), labels)
        ),
        "Logits are no log-probabilities yet: take log_softmax of them.": (
            lambda logits, labels: -_chosen(logits, labels)
        ),
        "Places with -100 have no loss, and here they are counted as if token 0 stood there.": (
            lambda logits, labels: cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].clamp(min=0).flatten()
            )
        ),
    },
)
