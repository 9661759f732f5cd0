"""A plain decode loop in place of `model.generate`: its cost follows the tokens that are written.

Equal prompts are read once, finished rows leave the batch, the cache grows in place. Each request draws from
a random stream of its own, so what it writes does not depend on those beside it, but for the last digit of a
matrix product, which may change with the size of a batch.
"""

import sys
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from lib.engines.base import Completion, Request, Sampling, request_seeds

ROOM = 64  # columns by which a full cache grows
WORTHWHILE = 1 / 8  # share of finished rows at which the others are copied together


def decode(
    model: PreTrainedModel,
    requests: Sequence[Request],
    sampling: Sampling,
    ends: Collection[int],
    *,
    batch_size: int = 256,
    batch_tokens: int = 2**17,
) -> list[Completion]:
    """One completion for each request, in order; each ends with one of `ends` or at its own length.

    A batch holds at most `batch_size` rows and `batch_tokens` tokens, those that may still be drawn counted,
    or one row; fewer where an accelerator has less room.
    """
    batch_tokens = min(batch_tokens, room_for_tokens(model))
    found: dict[int, Completion] = {}
    seeds = request_seeds(requests, sampling.seed)
    sizes = [len(one.prompt_ids) + len(one.forced_ids) + one.max_new_tokens for one in requests]
    for places in by_tokens(sizes, batch_tokens, batch_size):
        batch = _Batch(model, [requests[place] for place in places])
        streams = [np.random.default_rng(seeds[place]) for place in places]
        found |= dict(zip(places, batch.run(sampling, streams, ends), strict=True))
    return [found[place] for place in range(len(requests))]


def room_for_tokens(model: PreTrainedModel) -> int:
    """Tokens whose keys and values take half of what is free on the model's accelerator; else no limit."""
    if model.device.type != "cuda":
        return sys.maxsize
    free = torch.cuda.mem_get_info(model.device)[0]
    free += torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * width * model.dtype.itemsize
    return free // 2 // per_token


def by_tokens(sizes: Sequence[int], tokens: int, rows: int | None = None) -> list[list[int]]:
    """Places of rows that go together: of similar size, at most `tokens` when padded, and at most `rows`."""
    batches: list[list[int]] = []
    for place in sorted(range(len(sizes)), key=sizes.__getitem__):
        count = len(batches[-1]) + 1 if batches else 0
        if not batches or sizes[place] * count > tokens or count > (rows or count):
            batches.append([])
        batches[-1].append(place)
    return batches


def pick(
    logits: torch.Tensor, sampling: Sampling, draws: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and their log-probs, (N,) each, from logits (N, V) and uniform numbers (N,); greedy without.

    A number falls into its token's part of the cumulative distribution, tokens in the order of their ids.
    """
    log_probs = torch.log_softmax(logits.float() / (sampling.temperature or 1.0), dim=-1)
    if draws is None:
        chosen = logits.argmax(-1, keepdim=True)  # as `generate` has it where two are almost equal
    else:
        log_probs = nucleus(log_probs, sampling.top_p) if sampling.top_p < 1 else log_probs
        sums = log_probs.double().exp().cumsum(-1)  # double: in a long sum rare tokens would drown
        chosen = torch.searchsorted(sums, draws[:, None] * sums[:, -1:], right=True)
    return chosen[:, 0], log_probs.gather(1, chosen)[:, 0]


def nucleus(log_probs: torch.Tensor, top_p: float) -> torch.Tensor:
    """The smallest set of tokens that holds `top_p`, as log-probs (N, V) of sum one; -inf elsewhere."""
    ordered, places = log_probs.sort(dim=-1, descending=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    kept = ordered.masked_fill(before >= top_p, -torch.inf).log_softmax(-1)
    return torch.empty_like(kept).scatter_(1, places, kept)


class _Batch:
    """Left-padded rows on their way through the model; `rows` are the requests that are still in it."""

    def __init__(self, model: PreTrainedModel, requests: Sequence[Request]):
        self.model, self.requests = model, requests
        starts = [(*one.prompt_ids, *one.forced_ids) for one in requests]
        unique = {start: place for place, start in enumerate(dict.fromkeys(starts))}
        self.copies = torch.tensor([unique[start] for start in starts], device=model.device)
        self.width = max(map(len, unique))
        ids = [[0] * (self.width - len(start)) + list(start) for start in unique]
        self.ids = torch.tensor(ids, device=model.device)
        self.positions = torch.tensor([[len(start)] for start in unique], device=model.device)
        longest = self.width + max(one.max_new_tokens for one in requests)
        self.mask = (torch.arange(longest, device=model.device) >= self.width - self.positions).long()
        self.cache = growing_cache(model)
        self.rows = list(range(len(requests)))
        self.drawn: list[list[int]] = [[] for _ in requests]
        self.log_probs: list[list[float]] = [[] for _ in requests]
        self.unfinished = {row for row, one in enumerate(requests) if one.max_new_tokens > 0}

    @torch.inference_mode()
    def run(
        self, sampling: Sampling, streams: Sequence[np.random.Generator], ends: Collection[int]
    ) -> list[Completion]:
        """Draw until every request has its end token or its length."""
        logits = self._read_prompts()
        for row, one in enumerate(self.requests):
            logits[row, list(one.never_first)] = -torch.inf
        while self.unfinished:
            draws = None
            if sampling.temperature:
                draws = torch.tensor([streams[row].random() for row in self.rows], dtype=torch.float64)
                draws = draws.to(logits.device)
            tokens, log_probs = pick(logits, sampling, draws)
            self._write(tokens.tolist(), log_probs.tolist(), ends)
            places = [place for place, row in enumerate(self.rows) if row in self.unfinished]
            if places and len(self.rows) - len(places) >= WORTHWHILE * len(self.rows):
                self.rows = [self.rows[place] for place in places]
                tokens = self._keep(torch.tensor(places, device=tokens.device), tokens)
            if places:
                logits = self._read(tokens)
        return [self._completion(row, ends) for row in range(len(self.requests))]

    def _write(self, tokens: Sequence[int], log_probs: Sequence[float], ends: Collection[int]) -> None:
        """Add a token to each row that is not finished."""
        for row, token, log_prob in zip(self.rows, tokens, log_probs, strict=True):
            if row in self.unfinished:
                self.drawn[row].append(token)
                self.log_probs[row].append(log_prob)
                if token in ends or len(self.drawn[row]) == self.requests[row].max_new_tokens:
                    self.unfinished.remove(row)

    def _completion(self, row: int, ends: Collection[int]) -> Completion:
        drawn = self.drawn[row]
        truncated = not drawn or drawn[-1] not in ends
        return Completion((*self.requests[row].forced_ids, *drawn), truncated, tuple(self.log_probs[row]))

    def _read_prompts(self) -> torch.Tensor:
        """Read each prompt once, and copy what was read; logits (rows, V) of every row's first token."""
        mask = self.mask[:, : self.width]
        logits = self._forward(self.ids, mask, (mask.cumsum(1) - 1).clamp(min=0))
        return self._keep(self.copies, logits)

    def _read(self, tokens: torch.Tensor) -> torch.Tensor:
        """Read a token of each row; logits (rows, V) of the next."""
        self.width += 1
        logits = self._forward(tokens[:, None], self.mask[:, : self.width], self.positions)
        self.positions = self.positions + 1
        return logits

    def _keep(self, places: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """These rows of the batch, in this order, are the batch from now on; the same of `values`."""
        self.cache.batch_select_indices(places)
        self.mask, self.positions = self.mask[places], self.positions[places]
        return values[places]

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]


class GrowingLayer(DynamicLayer):
    """Keys and values in a room with space to grow: a step writes one column, where the usual copies all."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *arguments: Any, **named: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add states (N, heads, new, D); all keys and all values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.rooms = [key_states[:, :, :0], value_states[:, :, :0]]
        first = self.get_seq_length()
        last = first + key_states.shape[-2]
        for place, states in enumerate((key_states, value_states)):
            if last > self.rooms[place].shape[-2]:
                larger = states.new_empty(*states.shape[:2], last + ROOM, states.shape[-1])
                larger[:, :, :first] = self.rooms[place][:, :, :first]
                self.rooms[place] = larger
            self.rooms[place][:, :, first:last] = states
        self.keys, self.values = (room[:, :, :last] for room in self.rooms)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows; room to grow is made with the next column."""
        super().batch_select_indices(indices)
        self.rooms = [self.keys, self.values]


def growing_cache(model: PreTrainedModel) -> DynamicCache:
    """An empty cache for the model; layers with a window or a state of another kind stay as they are."""
    cache = DynamicCache(config=model.config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
