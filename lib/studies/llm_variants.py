"""Other frozen LLMs, and other ways to ask the shipped one: a table of what is right for each.

python -m lib.studies.llm_variants other_seed      dial-llm made again with another seed, 600 steps
python -m lib.studies.llm_variants other_habits    and by writers with another style for each kind of question
python -m lib.studies.llm_variants deeper          dial-llm on questions of 13 to 16 turns
python -m lib.studies.llm_variants close           dial-llm, the instruction with one word more
python -m lib.studies.llm_variants distant         dial-llm, the instruction before the question

Writes data/dial_llm_variants/<name>/table.csv, in the form of data/dial_llm/table.csv. The weights of the
other LLMs are not shipped: a policy that asks them reads questions with the states of dial-llm.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from lib.dial import frozen_llm
from lib.dial.frozen_llm import Habits
from lib.dial.world import MAX_DEPTH
from lib.policies.load import load_policy
from lib.runs import ROOT, start_run

TABLES = ROOT / "data" / "dial_llm_variants"
ROTATED = {"sums": "think", "mixed": "Say d =", "products": "Jot"}  # no kind keeps its style


@dataclass(frozen=True)
class Variant:
    """A table to measure: of which LLM, in which words, on which questions."""

    training: dict[str, Any] = field(default_factory=dict)  # of another LLM; empty: the shipped one
    words: str = frozen_llm.PROMPT
    depths: range = range(1, MAX_DEPTH + 1)
    each: int = 50  # questions a cell


VARIANTS = {
    "other_seed": Variant({"seed": 1, "steps": 600}),
    "other_habits": Variant({"seed": 2, "steps": 600, "habits": Habits(apt_style=ROTATED)}),
    "deeper": Variant(depths=range(MAX_DEPTH + 1, MAX_DEPTH + 5)),
    "close": Variant(words="Human: {question} Okay, {style} {steps}.\nAssistant:"),
    "distant": Variant(words="Human: {style} {steps}. {question}\nAssistant:"),
}


def make(name: str) -> None:
    """Train the variant's LLM where it has one of its own, and measure its table."""
    variant, begun = VARIANTS[name], time.monotonic()
    policy = load_policy("dial-llm")
    facts: dict[str, Any] = {}
    if variant.training:
        run = start_run(f"dial_llm_{name}", "reference", {"name": name})
        model, facts = frozen_llm.train(run, **variant.training)
        policy = (model, policy[1])
    table = frozen_llm.measure_cells(policy, variant.depths, each=variant.each, words=variant.words)
    frozen_llm.write_table(
        TABLES / name,
        table,
        command=f"python -m lib.studies.llm_variants {name}",
        prompt=variant.words,
        apt_style=dict(variant.training.get("habits", Habits()).apt_style),
        questions_per_cell=variant.each,
        split="test",
        **facts | {"seconds": round(time.monotonic() - begun, 1)},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=VARIANTS)
    torch.set_num_threads(1)
    make(parser.parse_args().name)


if __name__ == "__main__":
    main()
