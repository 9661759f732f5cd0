"""TRL's trainer at a cost that follows the tokens that were written, not the longest response of the batch.

Responses come from our decode loop, passes for log-probs leave padding out, and micro-batches hold rows of
similar length. Loss and gradient are those of TRL's own passes, to rounding.
"""

from collections.abc import Mapping, Sequence
from math import gcd
from typing import Any

import torch
import trl
from transformers import GenerationConfig
from transformers.utils import logging
from trl.models import unwrap_model_for_generation

from lib.engines.base import Request, Sampling
from lib.engines.decode import by_tokens, decode

# Tokens of a pass: enough to keep the device busy, few enough that rows of other lengths stay out.
PASS_TOKENS = {"cpu": 1024}
ACCELERATOR_PASS_TOKENS = 8192
UNDERSTOOD = {
    *("max_new_tokens", "do_sample", "temperature", "top_p", "begin_suppress_tokens"),
    *("eos_token_id", "pad_token_id", "bos_token_id", "max_length", "use_cache", "disable_compile"),
    *("output_attentions", "output_hidden_states", "transformers_version", "_from_model_config"),
}
NEUTRAL = {"top_k": 0, "repetition_penalty": 1.0, "min_p": 0.0}

logger = logging.get_logger(__name__)


class TrimmingTrainer(trl.GRPOTrainer):
    """TRL's GRPOTrainer without padding; images, and options of `generate` that we lack, go TRL's own way."""

    _buffered_inputs: Any  # TRL's: the micro-batches of a rollout batch

    # ---- responses ----

    def _generate_single_turn(
        self, prompt_ids: Sequence[list[int]], images: Any, multimodal_fields: Any, *more: Any, **named: Any
    ) -> Any:
        if multimodal_fields or not self._ours():
            return super()._generate_single_turn(prompt_ids, images, multimodal_fields, *more, **named)
        config = self.generation_config
        never = tuple(token_list(config.begin_suppress_tokens))
        requests = [Request(tuple(ids), (), config.max_new_tokens, None, never) for ids in prompt_ids]
        return self._decode(requests), None

    def _decode(self, requests: Sequence[Request]) -> list[list[int]]:
        """Completions, forced tokens first, by the options of the trainer's own generation."""
        config = self.generation_config
        temperature = config.temperature if config.do_sample else 0.0
        sampling = Sampling(temperature, config.top_p or 1.0, draw_seed())
        with unwrap_model_for_generation(
            self.model_wrapped,
            self.accelerator,
            gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
        ) as model:
            found = decode(model, requests, sampling, token_list(config.eos_token_id))
        return [list(one.ids) for one in found]

    def _ours(self) -> bool:
        """Whether our loop can do what is asked; sharded ranks must read as many tokens as each other."""
        sharded = self._dist.is_fsdp or self._dist.is_zero3
        if sharded or self.use_vllm or self.use_transformers_continuous_batching:
            return False
        lacking = not_understood(self.model.generation_config, self.generation_config)
        if lacking:
            why = "set for generation, so responses come from TRL's own, slower loop"
            logger.warning_once(f"{lacking}: {why}")
        return not lacking

    # ---- passes ----

    def _get_per_token_logps_and_entropies(
        self,
        model: torch.nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **others: Any,
    ) -> Any:
        plain = super()._get_per_token_logps_and_entropies
        if any(value is not None and value is not False for value in others.values()):
            more = (logits_to_keep, batch_size, compute_entropy)
            return plain(model, input_ids, attention_mask, *more, **others)
        begins, ends = real_span(attention_mask, logits_to_keep)
        found: list[list[torch.Tensor | None]] = []
        order: list[int] = []
        for rows in self._passes((ends - begins).tolist(), batch_size):
            part = Part(input_ids[rows], attention_mask[rows], begins[rows], ends[rows], logits_to_keep)
            values = plain(model, part.ids, part.mask, part.kept, compute_entropy=compute_entropy)
            found.append([None if x is None else part.put_back(x) for x in values])
            order += rows
        back = torch.tensor(order, device=input_ids.device).argsort()
        columns = zip(*found, strict=True)
        return tuple(None if parts[0] is None else torch.cat(parts)[back] for parts in columns)

    def _passes(self, sizes: Sequence[int], batch_size: int | None) -> list[list[int]]:
        """Rows of each pass. Every rank makes as many: DDP and FSDP talk to the others in each of them."""
        device = self.accelerator.device
        passes = by_tokens(sizes, PASS_TOKENS.get(device.type, ACCELERATOR_PASS_TOKENS), batch_size)
        most = int(self.accelerator.gather(torch.tensor([len(passes)], device=device)).max())
        while len(passes) < most:
            largest = max(range(len(passes)), key=lambda place: (len(passes[place]) > 1, len(passes[place])))
            rows = passes[largest]
            passes[largest : largest + 1] = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
        return passes

    # ---- micro-batches ----

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        before, inputs = self._buffered_inputs, super()._prepare_inputs(generation_batch)
        if self._buffered_inputs is before or not self._is_order_free():
            return inputs
        steps = self.args.steps_per_generation
        together = gcd(steps, self.args.gradient_accumulation_steps)  # of one update, wherever that begins
        updates = [self._buffered_inputs[first : first + together] for first in range(0, steps, together)]
        self._buffered_inputs = [batch for update in updates for batch in by_length(update)]
        return self._buffered_inputs[self._step % steps]

    def _is_order_free(self) -> bool:
        """Whether the gradient of an update is the same however its rows are put into micro-batches."""
        parts = self._entropy_bonus_enabled or self.aux_loss_enabled or self.top_entropy_quantile < 1
        return self.loss_type != "bnpo" and not parts


def draw_seed() -> int:
    """From torch's generator, which differs over processes and is part of a checkpoint."""
    return int(torch.randint(2**62, ()))


def token_list(tokens: int | Sequence[int] | None) -> list[int]:
    """Token ids as transformers writes them, as a list."""
    return [] if tokens is None else [tokens] if isinstance(tokens, int) else list(tokens)


def not_understood(*configs: GenerationConfig) -> dict[str, Any]:
    """Options that our decode loop does not have; a later configuration overrides an earlier one."""
    options: dict[str, Any] = {}
    for config in configs:
        options |= {name: getattr(config, name, None) for name in (options | config.to_diff_dict())}
    given = {name: value for name, value in options.items() if name not in UNDERSTOOD and value is not None}
    return {name: value for name, value in given.items() if value != NEUTRAL.get(name)}


def real_span(attention_mask: torch.Tensor, logits_to_keep: int) -> tuple[torch.Tensor, torch.Tensor]:
    """First column of each row without padding, and the one after its last: (N,) each.

    A row keeps at least one token of its prompt and one of its completion, so that there is one to score.
    """
    width = attention_mask.shape[1]
    prompt, columns = width - logits_to_keep, torch.arange(width, device=attention_mask.device)
    begins = torch.where(attention_mask.bool(), columns, width).amin(1).clamp(max=prompt - 1)
    ends = torch.where(attention_mask.bool(), columns + 1, 0).amax(1).clamp(min=prompt + 1)
    return begins, ends


class Part:
    """Some rows (n, P + T), moved to the left and cut after the longest: `ids` and `mask` (n, width).

    The last `kept` columns hold all completions; `put_back` gives their values the places they came from.
    """

    def __init__(
        self, ids: torch.Tensor, mask: torch.Tensor, begins: torch.Tensor, ends: torch.Tensor, completion: int
    ):
        prompt = ids.shape[1] - completion
        width, skipped = int((ends - begins).max()), int((prompt - begins).min())
        columns = begins[:, None] + torch.arange(width, device=ids.device)
        inside, columns = columns < ends[:, None], columns.clamp(max=ids.shape[1] - 1)
        self.ids, self.mask = ids.gather(1, columns), mask.gather(1, columns) * inside
        self.kept = width - skipped
        places = prompt - begins[:, None] - skipped + torch.arange(completion, device=ids.device)
        self.places, self.real = places.clamp(max=self.kept - 1), mask[:, prompt:].bool()

    def put_back(self, values: torch.Tensor) -> torch.Tensor:
        """Values (n, kept) as (n, T), with zeros where padding was."""
        return values.gather(1, self.places).masked_fill(~self.real, 0)


def by_length(batches: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of some micro-batches, put together anew: short responses in the first, long in the last."""
    first = batches[0]
    rowwise = [name for name, value in first.items() if isinstance(value, torch.Tensor) and value.dim()]
    if len(batches) == 1 or any(isinstance(value, list) for value in first.values()):
        return [dict(batch) for batch in batches]
    joined = {name: torch.cat([batch[name] for batch in batches]) for name in rowwise}
    order = (joined["prompt_mask"].sum(1) + joined["completion_mask"].sum(1)).argsort()
    chunks = zip(batches, order.chunk(len(batches)), strict=True)
    return [dict(batch) | {name: joined[name][rows] for name in rowwise} for batch, rows in chunks]
