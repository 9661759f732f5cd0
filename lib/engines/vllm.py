"""vLLM in this process. It has an environment of its own: see README, vLLM."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any, Self

from transformers import PreTrainedTokenizerBase

from lib.engines.base import NEVER, Completion, Request, Sampling, first_alone, request_seeds
from lib.policies.load import find_source, fingerprint, load_tokenizer


def import_vllm() -> ModuleType:
    """The package; ImportError says where it can be had."""
    try:
        import vllm
    except ImportError as error:
        raise ImportError(f"vLLM cannot be imported ({error}): see README for its environment") from error
    return vllm


class VLLMEngine:
    """An engine over vLLM's `LLM`; `options` are of its `SamplingParams`, for all requests."""

    setting: str  # of one that was loaded: what tells its weights from others, see `lib.checked.identity`

    def __init__(self, llm: Any, tokenizer: PreTrainedTokenizerBase, **options: Any):
        self.llm, self.tokenizer, self.options = llm, tokenizer, options

    @classmethod
    def load(cls, base: str, *, memory_share: float = 0.9, **options: Any) -> Self:
        """A model as `load_policy` knows it, in `memory_share` of the device; `options` are vLLM's."""
        source, pinned, named = *find_source(base), dict(sorted(options.items()))
        options |= {"gpu_memory_utilization": memory_share, **pinned}
        # Log-probs of the distribution that tokens are drawn from.
        llm = import_vllm().LLM(model=source, logprobs_mode="processed_logprobs", **options)
        engine = cls(llm, load_tokenizer(base))
        engine.setting = f"vLLM {fingerprint(base)} {named}"
        return engine

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion for each request, in order."""
        return first_alone(requests, lambda some: self._draw(some, sampling) if some else [])

    def _draw(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        shared = {"temperature": sampling.temperature, "top_p": sampling.top_p, "detokenize": False}
        shared |= {"logprobs": 0} | self.options  # of the drawn token alone
        params = [
            import_vllm().SamplingParams(
                max_tokens=one.max_new_tokens,
                seed=seed % 2**31,
                logit_bias=dict.fromkeys(one.never_first, NEVER) or None,
                **shared,
            )
            for one, seed in zip(requests, request_seeds(requests, sampling.seed), strict=True)
        ]
        starts = [{"prompt_token_ids": [*one.prompt_ids, *one.forced_ids]} for one in requests]
        outputs = [output.outputs[0] for output in self.llm.generate(starts, params, use_tqdm=False)]
        return [_completion(one.forced_ids, done) for one, done in zip(requests, outputs, strict=True)]


def _completion(forced: Sequence[int], drawn: Any) -> Completion:
    log_probs = (row[token].logprob for token, row in zip(drawn.token_ids, drawn.logprobs, strict=True))
    return Completion((*forced, *drawn.token_ids), drawn.finish_reason == "length", tuple(log_probs))
