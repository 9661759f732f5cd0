"""A model in this process: continue token ids, and look at the state it decides from."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lib.engines.base import Completion, Request, Sampling
from lib.engines.decode import decode

ROWS = 256  # that a pass over prompts holds


@dataclass(eq=False, repr=False)
class TransformersEngine:
    """Our decode loop, in batches of at most `batch_size` rows and `batch_tokens` tokens, padding counted."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    _: KW_ONLY
    batch_size: int = 256
    batch_tokens: int = 2**17

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion for each request, in order."""
        limits = {"batch_size": self.batch_size, "batch_tokens": self.batch_tokens}
        return decode(self.model, requests, sampling, self._ends(), **limits)

    def _ends(self) -> set[int]:
        """The tokens that end a response: chat models have several."""
        known = self.model.generation_config.eos_token_id
        return {self.tokenizer.eos_token_id, *(known if isinstance(known, list) else [known])}


def decision_states(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]
) -> torch.Tensor:
    """Last-layer hidden state at the last prompt token, where the response format is chosen: (N, width)."""
    states = []
    for first in range(0, len(prompts), ROWS):
        some = list(prompts[first : first + ROWS])
        batch = tokenizer(some, return_tensors="pt", padding=True, padding_side="left").to(model.device)
        with torch.inference_mode():
            read = model(batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True)
        states.append(read.hidden_states[-1][:, -1].float().cpu())
    return torch.cat(states)
