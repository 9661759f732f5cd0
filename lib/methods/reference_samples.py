"""AdaptThink's pre-sampling: how the reference fares on every question, kept as it is sampled."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lib.engines.generate import generate
from lib.thinking import is_solution_right


def sample_reference(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    path: Path,
    *,
    samples: int = 16,
    temperature: float = 1.0,
    max_new_tokens: int = 160,
    seed: int = 0,
    questions_at_once: int = 64,
    say: Callable[[str], None] | None = None,
) -> dict[str, dict[str, float]]:
    """How the reference fares on each question, by id: accuracy, mean tokens, truncated share, samples.

    One JSON line a question is appended to `path`, so a stopped call goes on where it was. A file made with
    other settings is refused.
    """
    settings = {
        "samples": samples,
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
    }
    found = _read_reference(path, settings)
    todo = [row for row in {row["id"]: row for row in rows}.values() if row["id"] not in found]
    path.parent.mkdir(parents=True, exist_ok=True)
    if not found:
        path.write_text(json.dumps({"settings": settings}) + "\n", encoding="utf-8")
    for first in range(0, len(todo), questions_at_once):
        chosen = todo[first : first + questions_at_once]
        responses = generate(
            model,
            tokenizer,
            [row["prompt"] for row in chosen for _ in range(samples)],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed + len(found),
        )
        lines = []
        for index, row in enumerate(chosen):
            mine = responses[index * samples : (index + 1) * samples]
            found[row["id"]] = {
                "accuracy": sum(is_solution_right(r.text, row["answer"], row["kind"]) for r in mine)
                / samples,
                "mean_tokens": sum(r.num_tokens for r in mine) / samples,
                "truncated": sum(r.is_truncated for r in mine) / samples,
                "samples": samples,
            }
            lines.append(json.dumps({"id": row["id"], **found[row["id"]]}) + "\n")
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))
        if say is not None:
            say(f"{len(found)} questions sampled, {len(todo) - first - len(chosen)} to go")
    return found


def _read_reference(path: Path, settings: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """What an earlier call stored; a last line cut short is dropped from the file."""
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
        path.write_text("".join(lines), encoding="utf-8")
    stored = [json.loads(line) for line in lines]
    if stored and stored[0] != {"settings": dict(settings)}:
        raise ValueError(
            f"{path} was made with {stored[0].get('settings')}, not with {dict(settings)}; delete it or "
            "name another file"
        )
    return {row.pop("id"): row for row in stored[1:]}
