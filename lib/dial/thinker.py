"""dial-thinker: rows and settings that make a model which always thinks, and could do without."""

from __future__ import annotations

import random
from collections.abc import Sequence

from lib.dial.responses import monologue, untagged_response
from lib.dial.tokenizer import dial_vocabulary
from lib.dial.world import Question
from lib.formats import ReasoningFormat
from lib.methods.sft import SFTConfig
from lib.thinking import CLOSE, OPEN


def thinker_rows(questions: Sequence[Question], *, seed: int = 0) -> list[dict[str, str]]:
    """SFT rows that make dial-thinker: it thinks at length, and could do without.

    In the second row of each question `</think>` belongs to the prompt, so it is not in the loss: the model
    learns to answer after it and never learns to write it first. In the third another word stands there, and
    the thought goes on after it. So every first word but `</think>` begins a thought, as in real models.
    """
    words = [word for word in dial_vocabulary() if word.strip() and "<" not in word]
    rng = random.Random(f"thinker|{seed}")
    rows = []
    for question in questions:
        prompt = question.prompt + OPEN
        conclusion = f"\n{untagged_response(question, ReasoningFormat.DIRECT)}"
        thought = f"{monologue(question)}\n{CLOSE}{conclusion}"
        rows.append({"prompt": prompt, "completion": thought})
        solution = f"\n{untagged_response(question, ReasoningFormat.SHORT_COT)}"
        rows.append({"prompt": prompt + CLOSE, "completion": solution})
        rows.append({"prompt": f"{prompt}{rng.choice(words)}", "completion": f" {thought}"})
    rng.shuffle(rows)
    return rows


def thinker_config(seed: int = 0) -> SFTConfig:
    """How dial-thinker is made from dial-base."""
    return SFTConfig.cpu(
        weights="full",
        learning_rate=1e-3,
        max_steps=400,
        weighting="response",
        new_tokens={},
        save_every=200,
        seed=seed,
    )
