"""A model in this process continues token ids."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lib.engines.base import Completion, Request, Sampling
from lib.engines.decode import decode


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
