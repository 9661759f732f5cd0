"""A model in this process: continue token ids, and look at the state it decides from."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from lib.engines.base import Completion, Request, Sampling


class TransformersEngine:
    """`model.generate` in batches of at most `batch_size` rows and `batch_tokens` tokens, padding counted.

    All requests of a call are drawn from one seed, in the order of their lengths.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int = 256,
        batch_tokens: int = 2**17,
    ):
        self.model, self.tokenizer = model, tokenizer
        self.batch_size, self.batch_tokens = batch_size, batch_tokens

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion for each request, in order."""
        set_seed(sampling.seed)
        found: dict[int, Completion] = {}
        for places in self._batches(requests):
            completions = self._decode([requests[place] for place in places], sampling)
            found |= dict(zip(places, completions, strict=True))
        return [found[place] for place in range(len(requests))]

    def _batches(self, requests: Sequence[Request]) -> Iterator[list[int]]:
        """Requests of similar length go together: less padding, and long responses wait for each other."""
        batch: list[int] = []
        for place in sorted(range(len(requests)), key=lambda place: len(_start(requests[place]))):
            width = len(_start(requests[place])) + requests[place].max_new_tokens  # the longest so far
            if batch and (len(batch) == self.batch_size or (len(batch) + 1) * width > self.batch_tokens):
                yield batch
                batch = []
            batch.append(place)
        if batch:
            yield batch

    def _decode(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One batch, decoded together from where the random generator stands."""
        pad = self.tokenizer.pad_token_id
        pad = self.tokenizer.eos_token_id if pad is None else pad
        starts = [_start(request) for request in requests]
        width = max(map(len, starts))
        ids = torch.tensor([[pad] * (width - len(start)) + start for start in starts])
        mask = torch.tensor([[0] * (width - len(start)) + [1] * len(start) for start in starts])
        drawn: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            drawn = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0}
            drawn["top_p"] = sampling.top_p
        with torch.inference_mode():
            output = self.model.generate(
                input_ids=ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                max_new_tokens=max(request.max_new_tokens for request in requests),
                pad_token_id=pad,
                **drawn,
            )
        rows = output[:, width:].tolist()
        return [cut(request, row, self._ends()) for request, row in zip(requests, rows, strict=True)]

    def _ends(self) -> set[int]:
        """The tokens that end a response: chat models have several."""
        known = self.model.generation_config.eos_token_id
        return {self.tokenizer.eos_token_id, *(known if isinstance(known, list) else [known])}


def cut(request: Request, drawn: Sequence[int], ends: Collection[int]) -> Completion:
    """The completion of a request from the ids that were drawn for it, which may go on after the end."""
    drawn = drawn[: request.max_new_tokens]
    last = next((place for place, token in enumerate(drawn) if token in ends), None)
    ids = drawn if last is None else drawn[: last + 1]
    return Completion((*request.forced_ids, *ids), truncated=last is None)


def _start(request: Request) -> list[int]:
    return [*request.prompt_ids, *request.forced_ids]


def decision_states(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    batch_size: int = 256,
) -> torch.Tensor:
    """Last-layer hidden state at the last prompt token, where the response format is chosen: (N, width)."""
    states = []
    for first in range(0, len(prompts), batch_size):
        batch = tokenizer(
            list(prompts[first : first + batch_size]), return_tensors="pt", padding=True, padding_side="left"
        )
        with torch.inference_mode():
            hidden = model(
                input_ids=batch["input_ids"].to(model.device),
                attention_mask=batch["attention_mask"].to(model.device),
                output_hidden_states=True,
            ).hidden_states[-1]
        states.append(hidden[:, -1].float().cpu())
    return torch.cat(states)
