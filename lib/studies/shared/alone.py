"""Ask a notebook's model with the accelerator to itself, by transformers or by a server of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lib.engines.ask import Policy, as_engine, load_engine
from lib.engines.base import Kept
from lib.engines.serve import serving
from lib.policies.load import fingerprint
from lib.policies.memory import parked
from lib.runs import digest, runs_folder


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
    machine; not in 4 bits, where vLLM would read other weights than those that answer here. Where a card or
    a server works for hours, completions are kept in runs/completions, and a call that was killed goes on.
    """
    quantised = getattr(policy[0], "is_loaded_in_4bit", False)
    if engine == "transformers":
        with parked(*beside):
            card = torch.accelerator.is_available()
            yield Kept(as_engine(policy), _file(source, quantised)) if card else policy
        return
    if quantised:
        raise ValueError(
            f"ENGINE={engine!r} cannot ask a model in 4 bits: take ENGINE='transformers', or WEIGHTS='lora'"
        )
    log, options = runs_folder() / "server.log", ["--max-model-len", "auto"]
    with parked(policy[0], *beside), serving(str(source), log, options) as url:
        yield Kept(load_engine("server", str(source), url=url), _file(source, quantised))


def _file(source: str | Path, quantised: bool) -> Path:
    """Where completions of these weights are kept, whatever the notebook."""
    return runs_folder() / "completions" / f"{digest([fingerprint(source), quantised])}.jsonl"
