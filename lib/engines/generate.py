"""Continue prompts with a model in this process, and look at the state it decides from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed


@dataclass(frozen=True)
class Response:
    """A response as text. `num_tokens` counts the forced prefix and the end token, as ARM counts tags."""

    text: str
    num_tokens: int
    is_truncated: bool


# ---- generation ----------------------------------------------------------------------------------


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    prefix: str = "",
    max_new_tokens: int = 160,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 256,
) -> list[Response]:
    """Continue each prompt after `prefix`; temperature 0 is greedy. One response per prompt, in order."""
    if temperature < 0:
        raise ValueError(f"temperature must be 0 (greedy) or more, got {temperature}")
    set_seed(seed)
    sampling = {"do_sample": temperature > 0}
    if temperature > 0:
        sampling |= {"temperature": temperature, "top_k": 0, "top_p": 1.0}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    prefix_ids = tokenizer(prefix, add_special_tokens=False).input_ids
    responses: list[Response | None] = [None] * len(prompts)
    encoded = [ids + prefix_ids for ids in tokenizer(list(prompts)).input_ids] if prompts else []
    # Prompts of similar length go together: less padding, and long responses wait for each other.
    order = sorted(range(len(prompts)), key=lambda index: len(encoded[index]))
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        width = max(len(encoded[index]) for index in chosen)
        ids = torch.tensor([[pad] * (width - len(encoded[i])) + encoded[i] for i in chosen])
        mask = torch.tensor([[0] * (width - len(encoded[i])) + [1] * len(encoded[i]) for i in chosen])
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=max_new_tokens,
                pad_token_id=pad,
                **sampling,
            )
        for index, row in zip(chosen, output[:, width:].tolist(), strict=True):
            responses[index] = _read(tokenizer, prefix_ids, row)
    return responses


def _read(tokenizer: PreTrainedTokenizerBase, prefix_ids: list[int], row: list[int]) -> Response:
    """Cut a generated row after its end token, and put the forced prefix in front of it."""
    finished = tokenizer.eos_token_id in row
    ids = row[: row.index(tokenizer.eos_token_id)] if finished else row
    text = tokenizer.decode(prefix_ids + ids, skip_special_tokens=True)
    return Response(text, len(prefix_ids) + len(ids) + finished, not finished)


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
