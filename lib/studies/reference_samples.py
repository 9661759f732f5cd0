"""AdaptThink's pre-sampling: how the reference fares on every question, kept as it is sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lib.engines.ask import Policy, ask, weights_behind
from lib.runs import KeptLines
from lib.tasks import Rollout, Task
from lib.thinking import read_thinking


def sample_reference(
    policy: Policy,
    tasks: Sequence[Task],
    path: Path,
    *,
    samples: int = 16,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 160,
    seed: int = 0,
    questions_at_once: int = 64,
    say: Callable[[str], None] | None = None,
) -> dict[str, dict[str, float]]:
    """How the reference fares on each question, by id: accuracy, mean tokens, truncated share, samples.

    One JSON line a question is appended to `path`, so a stopped call goes on where it was. A file made with
    other settings or by another model is refused.
    """
    settings: dict[str, Any] = {
        "samples": samples,
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
    }
    settings |= {"seed": seed} | ({"top_p": top_p} if top_p < 1 else {}) | {"model": weights_behind(policy)}
    lines = KeptLines(path)
    head, *stored = lines.read() or [None]
    if head is None:
        lines.append([{"settings": settings}])
    elif head != {"settings": settings}:
        raise ValueError(
            f"{path} was made with {head.get('settings')}, not with {settings}; delete it or name another "
            "file"
        )
    found = {row.pop("id"): row for row in stored}
    todo = list({task.id: task for task in tasks}.values())
    for first in range(0, len(todo), questions_at_once):
        chosen = todo[first : first + questions_at_once]
        if all(task.id in found for task in chosen):
            continue
        # All of them, though a kill may have kept some: what is drawn together is drawn the same.
        rollouts = ask(
            policy,
            [task for task in chosen for _ in range(samples)],
            read=read_thinking,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed + first,
        )
        new = {t.id: _fared(rollouts[i * samples : (i + 1) * samples]) for i, t in enumerate(chosen)}
        lines.append({"id": name} | numbers for name, numbers in new.items() if name not in found)
        found |= new
        if say is not None:
            say(f"{len(found)} questions sampled, {len(todo) - first - len(chosen)} to go")
    return found


def _fared(rollouts: Sequence[Rollout]) -> dict[str, float]:
    count = len(rollouts)
    return {
        "accuracy": sum(bool(rollout.correct) for rollout in rollouts) / count,
        "mean_tokens": sum(rollout.tokens for rollout in rollouts) / count,
        "truncated": sum(rollout.truncated for rollout in rollouts) / count,
        "samples": count,
    }
