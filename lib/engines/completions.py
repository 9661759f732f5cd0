"""A server that continues token ids, as an engine: `/v1/completions` of vLLM, SGLang and others."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass
from typing import Any

import openai
from transformers import PreTrainedTokenizerBase

from lib.engines.base import NEVER, Completion, Request, Sampling, first_alone, request_seeds
from lib.engines.server import KEY_VARIABLE, ServerError, address, check_address


@dataclass(eq=False, repr=False)
class ServerEngine:
    """An engine behind `/v1/completions`, as vLLM, SGLang and llama.cpp serve it.

    Prompts are sent as token ids, or with `as_text` as text (`transformers serve` takes nothing else). Where
    the server names no ids, its text is encoded again. Each request has a seed of its own. See `Kept` to
    keep what was generated.
    """

    url: str
    model: str
    tokenizer: PreTrainedTokenizerBase
    _: KW_ONLY
    key_variable: str = KEY_VARIABLE
    as_text: bool = False
    workers: int = 256  # requests at once, which vLLM puts into batches
    timeout: float = 600.0
    retries: int = 5

    def __post_init__(self) -> None:
        check_address(self.url, self.key_variable)
        named = address(self.url, self.key_variable, self.timeout)
        http = openai.DefaultHttpxClient(follow_redirects=False)  # the key is for this server
        self.client = openai.OpenAI(**named, max_retries=self.retries, http_client=http)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion for each request, in order; ServerError where one cannot be had."""
        pool = ThreadPoolExecutor(self.workers)

        def draw(some: Sequence[Request]) -> list[Completion]:
            seeds = request_seeds(some, sampling.seed)
            return list(pool.map(lambda one, seed: self._complete(one, sampling, seed), some, seeds))

        try:
            return first_alone(requests, draw)
        finally:
            pool.shutdown(cancel_futures=True)

    def _complete(self, request: Request, sampling: Sampling, seed: int) -> Completion:
        start: Any = [*request.prompt_ids, *request.forced_ids]
        if self.as_text and request.never_first:
            raise ServerError(f"{self.url} takes text alone, so it cannot keep tokens from coming first")
        barred = dict.fromkeys(map(str, request.never_first), NEVER)
        by_id = {"return_token_ids": True, "logprobs": 0, "logit_bias": barred}
        try:
            answer = self.client.completions.create(
                model=self.model,
                prompt=self.tokenizer.decode(start) if self.as_text else start,
                max_tokens=request.max_new_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=seed % 2**31,
                extra_body={} if self.as_text else by_id,
            )
            choice = answer.choices[0]
        except (openai.OpenAIError, IndexError, TypeError) as error:
            raise ServerError(
                f"{self.url} gives no completion: {error}. Check the address, the key and the model."
            ) from error
        truncated, ids = choice.finish_reason == "length", getattr(choice, "token_ids", None)
        if ids is None:
            ids = self.tokenizer(choice.text, add_special_tokens=False).input_ids
            ids += [] if truncated else [self.tokenizer.eos_token_id]
        log_probs = choice.logprobs and tuple(choice.logprobs.token_logprobs or ())
        return Completion((*request.forced_ids, *ids), truncated, log_probs or None)
