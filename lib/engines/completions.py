"""A server that continues token ids, as an engine: `/v1/completions` of vLLM, SGLang and others."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from operator import index
from typing import Any

from transformers import PreTrainedTokenizerBase

from lib.engines.base import NEVER, Completion, Request, Sampling, first_alone, request_seeds
from lib.engines.server import CUT, Server, ServerError


@dataclass(frozen=True, eq=False, repr=False)
class ServerEngine(Server):
    """An engine behind `/v1/completions`, as vLLM, SGLang and llama.cpp serve it.

    Prompts are sent as token ids, or with `as_text` as text (`transformers serve` takes nothing else). Where
    the server names no ids, its text is encoded again. Each request has a seed of its own. See `Kept` to
    keep what was generated.
    """

    tokenizer: PreTrainedTokenizerBase
    as_text: bool = field(default=False, kw_only=True)
    workers: int = field(default=256, kw_only=True)  # requests at once, which vLLM puts into batches
    timeout: float = field(default=600.0, kw_only=True)
    endpoint = "completions"
    drawn: dict[Any, Completion] = field(default_factory=dict, init=False)  # by a call that failed

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion for each request, in order; ServerError where one cannot be had.

        Asked again, only those that could not be had are sent.
        """
        given: set[Any] = set()
        found = first_alone(requests, lambda some: self._draw(some, sampling, given))
        for name in given:  # only now, for what follows a first token may have failed
            del self.drawn[name]
        return found

    def _draw(self, requests: Sequence[Request], sampling: Sampling, given: set[Any]) -> list[Completion]:
        seeds = request_seeds(requests, sampling.seed)
        names = [(one, sampling, seed) for one, seed in zip(requests, seeds, strict=True)]
        bodies = {name: self._body(*name) for name in names if name not in self.drawn}
        if failures := self.fetch(bodies, self.drawn.__setitem__):
            problem = f"{len(failures)} of {len(bodies)} requests: {next(iter(failures.values()))}"
            remedy = "Check the address, the key and the model; asked again, only those are sent."
            raise ServerError(f"{self.url} gives no completion for {problem}. {remedy}")
        given.update(names)
        found = [self.drawn[name] for name in names]
        return [replace(r, ids=(*one.forced_ids, *r.ids)) for one, r in zip(requests, found, strict=True)]

    def _body(self, request: Request, sampling: Sampling, seed: int) -> dict[str, Any]:
        if self.as_text and request.never_first:
            raise ServerError(f"{self.url} takes text alone, so it cannot keep tokens from coming first")
        start: Any = [*request.prompt_ids, *request.forced_ids]
        barred = dict.fromkeys(map(str, request.never_first), NEVER)
        by_id = {"return_token_ids": True, "logprobs": 0, "logit_bias": barred}
        return ({} if self.as_text else by_id) | {
            "prompt": self.tokenizer.decode(start) if self.as_text else start,
            "max_tokens": request.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed % 2**31,
        }

    def _read(self, choice: Any, usage: Any) -> Completion:
        truncated, ids = choice.get("finish_reason") in CUT, choice.get("token_ids")
        if ids is None:
            ids = self.tokenizer(choice["text"], add_special_tokens=False).input_ids
            ids += [] if truncated else [self.tokenizer.eos_token_id]
        log_probs = (choice.get("logprobs") or {}).get("token_logprobs")
        return Completion(tuple(map(index, ids)), truncated, tuple(log_probs) if log_probs else None)
