"""Ask a notebook's model with the accelerator to itself, by transformers or by a server of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lib.engines.ask import Policy, load_engine
from lib.engines.serve import serving
from lib.policies.memory import parked
from lib.runs import runs_folder


@contextmanager
def asking(
    policy: tuple[PreTrainedModel, PreTrainedTokenizerBase],
    engine: str,
    source: str | Path,
    *,
    beside: tuple[PreTrainedModel, ...] = (),
) -> Iterator[Policy]:
    """The policy, or what answers in its place; it and the models `beside` it make room meanwhile.

    "vllm" serves `source`, the name or folder of the same weights, with a copy on each device of this
    machine; not in 4 bits, where vLLM would read other weights than those that answer here.
    """
    model = policy[0]
    if engine == "transformers":
        with parked(*beside):
            yield policy
        return
    if getattr(model, "is_loaded_in_4bit", False):
        raise ValueError(
            f"ENGINE={engine!r} cannot ask a model in 4 bits: take ENGINE='transformers', or WEIGHTS='lora'"
        )
    log, options = runs_folder() / "server.log", ["--max-model-len", "auto"]
    with parked(model, *beside), serving(str(source), log, options) as url:
        yield load_engine("server", str(source), url=url)
