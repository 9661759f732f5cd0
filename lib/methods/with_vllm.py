"""Training on vLLM's samples: TRL draws free responses, our engine those that a method makes start so.

vLLM's log-probs are not quite the trainer's, so the ratio of the two weighs each token's loss, 2 at most.
(TRL's default is one ratio for a whole response, and none above 3: long responses would be left out.)
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import trl
from transformers import PreTrainedTokenizerBase

from lib.engines.base import Request, Sampling
from lib.engines.vllm import VLLMEngine

OPTIONS = {
    "vllm_importance_sampling_mode": "token_truncate",
    "vllm_importance_sampling_clip_max": 2.0,
    "vllm_gpu_memory_utilization": 0.45,
}
ROOM = 16  # tokens that `rewrite` may add at another step


def vllm_conflicts(config: Any, *, forced: bool) -> Iterator[str]:
    """What a method's configuration has that does not go with vLLM; `forced`: it makes responses start so."""
    if config.weights == "qlora":
        yield (
            'use_vllm with weights "qlora": vLLM would draw from other weights than those in 4 bits that '
            'are trained. Use weights "lora" in bfloat16 with vLLM, or leave use_vllm out'
        )
    plain = {"vllm_mode": "colocate", "vllm_enable_sleep_mode": False, "vllm_tensor_parallel_size": 1}
    for name, value in plain.items() if forced else ():
        if config.trainer.get(name, value) != value:
            yield f"{name} must be {value!r}: {config.name} forces starts, each process those of its rows"


def set_context(
    arguments: trl.GRPOConfig,
    config: Any,
    start: Any,
    rows: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    most: int,
) -> None:
    """Unless it is set: what the longest prompt, as at `start`, and its response need, or `most`."""
    if arguments.vllm_max_model_length is None:
        rng = random.Random(0)
        prompts = [config.rewrite(dict(row), rng, start)["prompt"] for row in rows]
        longest = max(len(ids) for ids in tokenizer(prompts).input_ids)
        arguments.vllm_max_model_length = min(most, longest + ROOM + config.max_completion_length + 1)


def sample(
    trainer: trl.GRPOTrainer, requests: Sequence[Request], seed: int
) -> tuple[list[list[int]], list[list[float | None]]]:
    """Completions by the trainer's weights, with log-probs: at a start None, a ratio of 1 to TRL.

    A first token that some may not be counts as a start: its probability is among the others alone.
    """
    vllm = trainer.vllm_generation
    if trainer.state.global_step != trainer._last_loaded_step:
        vllm.sync_weights()
        trainer._last_loaded_step = trainer.state.global_step
    options = {"top_k": vllm.top_k, "min_p": vllm.min_p or 0.0, "repetition_penalty": vllm.repetition_penalty}
    engine = VLLMEngine(vllm.llm, trainer._tokenizer, **options | vllm.generation_kwargs)
    found = engine.generate(requests, Sampling(vllm.temperature, vllm.top_p, seed))
    log_probs: list[list[float | None]] = []
    for request, one in zip(requests, found, strict=True):
        drawn = (one.log_probs or ())[bool(request.never_first) :]
        log_probs.append([*[None] * (len(one.ids) - len(drawn)), *drawn])
    return [list(one.ids) for one in found], log_probs


def release(trainer: trl.GRPOTrainer) -> None:
    """Give back what vLLM holds at the end of a training: device memory and groups of processes."""
    if trainer.use_vllm and trainer.vllm_mode == "colocate":
        trainer.vllm_generation.llm.llm_engine.engine_core.shutdown()
