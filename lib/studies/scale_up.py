"""Notebook 08: what lives in memory during a step, what padding costs, and vLLM beside transformers.

`python -m lib.studies.scale_up FOLDER`, by the Python of vLLM's environment, answers what a folder asks.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from lib.engines.ask import load_engine
from lib.engines.base import Completion, Request, Sampling
from lib.runs import ROOT, read_json, write_json
from lib.studies.shared.figures import PALETTE

# ---- memory ------------------------------------------------------------------------------------


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that live, and the most that lived at once, while it is open.

    Each storage counts once, from the first operation that gives it to its end. What lived before counts
    where it is named.
    """

    def __init__(self, *before: torch.Tensor):
        super().__init__()
        self.now, self.peak = 0, 0
        self._known: set[int] = set()
        for tensor in before:
            self._add(tensor)

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._add, result)
        return result


def memory_bars(terms: pd.DataFrame, limit: float) -> Figure:
    """Stacked bars of GiB, one a row of `terms`, a colour a column; a line where the card ends."""
    shown = terms.loc[:, terms.max() > 0.05]
    figure, ax = plt.subplots(figsize=(8, 0.3 * len(shown) + 1), layout="constrained")
    shown.plot.barh(stacked=True, ax=ax, color=PALETTE, edgecolor="white", width=0.8)
    ax.axvline(limit, color="0.2", lw=1.5, label="the card's memory")
    ax.invert_yaxis()
    ax.set(xlabel="GiB on each device", ylabel="", xlim=(0, 1.03 * limit))
    ax.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


# ---- what padding costs ------------------------------------------------------------------------


def token_slots(lengths: Sequence[int], rows: int) -> dict[str, int]:
    """Places that a model computes to write responses of these lengths, `rows` at a time.

    padded: every batch runs to its longest. leaving: finished rows leave, the batch ends with its longest.
    filled: a place that gets free is taken by the next response, as vLLM does it. written: what was asked.
    """
    batches = [lengths[first : first + rows] for first in range(0, len(lengths), rows)]
    padded = sum(len(batch) * max(batch) for batch in batches)
    ends = [0] * rows  # of each place, in steps
    for length in lengths:
        place = ends.index(min(ends))
        ends[place] += length
    steps = {"padded": sum(map(max, batches)), "filled": max(ends)}
    return {
        "written": sum(lengths),
        "computed, padded": padded,
        "steps, batch after batch": steps["padded"],
        "steps, places filled again": steps["filled"],
    }


# ---- vLLM beside transformers ------------------------------------------------------------------


def asked_by_vllm(
    python: Path, folder: Path, model: Path, requests: Sequence[Request], samplings: Sequence[Sampling]
) -> dict[str, Any]:
    """The completions of vLLM, run by another environment's Python, for each way to sample; and seconds."""
    asked = {"model": str(model), "requests": [asdict(one) for one in requests]}
    write_json(folder / "asked.json", asked | {"samplings": [asdict(one) for one in samplings]})
    paths = [str(ROOT)]
    if not torch.accelerator.is_available():
        paths.append(str(ROOT / "tests" / "vllm_cpu"))  # what its CPU build needs
    call = [str(python), "-m", "lib.studies.scale_up", str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(call, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"vLLM failed:\n{done.stderr[-2000:]}")
    return read_json(folder / "answered.json")


def _answer(folder: Path) -> None:
    asked = read_json(folder / "asked.json")
    requests = [Request(**_tuples(one)) for one in asked["requests"]]
    begun = time.monotonic()
    # All prompts are read at once: on a CPU one that is read in parts cannot have a seed.
    room: dict[str, Any] = {"memory_share": 0.2, "max_model_len": 512, "max_num_batched_tokens": 2**15}
    engine = load_engine("vllm", asked["model"], **room)
    ready, found = time.monotonic(), []
    for one in asked["samplings"]:
        found.append([asdict(done) for done in engine.generate(requests, Sampling(**one))])
    seconds = {"start": ready - begun, "answers": time.monotonic() - ready}
    write_json(folder / "answered.json", {"completions": found, "seconds": seconds})


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def completions(rows: Sequence[dict[str, Any]]) -> list[Completion]:
    """Completions as `asked_by_vllm` gives them."""
    return [Completion(**_tuples(row)) for row in rows]


def agreement(ours: Sequence[Completion], theirs: Sequence[Completion]) -> dict[str, Any]:
    """How many responses are equal, and the largest gap between the log-probs of those."""
    equal = [(a, b) for a, b in zip(ours, theirs, strict=True) if a.ids == b.ids]
    pairs = [zip(a.log_probs or (), b.log_probs or (), strict=True) for a, b in equal]
    gap = max((abs(x - y) for pair in pairs for x, y in pair), default=float("nan"))
    return {"responses equal": f"{len(equal)} of {len(ours)}", "largest gap of a log-prob": gap}


if __name__ == "__main__":
    _answer(Path(sys.argv[1]))
