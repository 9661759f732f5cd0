"""The one interface of all engines: token ids in, token ids out. Completions can be kept in a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Request:
    """Continue `prompt_ids`, after `forced_ids`, by at most `max_new_tokens`; `key` is (task id, sample)."""

    prompt_ids: tuple[int, ...]
    forced_ids: tuple[int, ...] = ()
    max_new_tokens: int = 160
    key: tuple[str, int] | None = None


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; temperature 0 is greedy. The seed holds for a whole call."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must be 0 (greedy) or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie above 0 and be at most 1, got {self.top_p}")


@dataclass(frozen=True)
class Completion:
    """The ids of a response: forced ones first, the end token last, unless it was `truncated`.

    `log_probs` are of the ids that were drawn, where the engine knows them.
    """

    ids: tuple[int, ...]
    truncated: bool
    log_probs: tuple[float, ...] | None = None


class Engine(Protocol):
    """Whatever continues prompts: a model in this process or a server elsewhere."""

    tokenizer: PreTrainedTokenizerBase

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion for each request, in order."""


# ---- what was generated is not generated again -------------------------------------------------


class KeptLines:
    """A JSONL file of results that grows as they come. A last line that a kill cut short is dropped."""

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> list[Any]:
        """What was stored so far; nothing where there is no file yet."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):
            lines.pop()
            self.path.write_text("".join(lines), encoding="utf-8")
        return [json.loads(line) for line in lines]

    def append(self, rows: Iterable[Any]) -> None:
        """Store more."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))


class Kept:
    """An engine whose completions are kept in a file, by task id, sample and all else that was asked.

    A call that was killed goes on where it was: `at_once` requests are generated and stored at a time. The
    seed of each such part is one higher, so a call that fits into one part draws what the engine alone would.
    """

    def __init__(self, engine: Engine, path: Path, *, at_once: int = 4096):
        self.engine, self.tokenizer, self.at_once = engine, engine.tokenizer, at_once
        self.lines = KeptLines(path)
        self.known: dict[str, Completion] = {row.pop("digest"): _completion(row) for row in self.lines.read()}

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion for each request, in order; only those that are not in the file are generated."""
        digests = [_digest(request, sampling) for request in requests]
        if len(set(digests)) < len(digests):
            raise ValueError("two requests are the same: give each a key of its own (task id, sample)")
        for number, first in enumerate(range(0, len(requests), self.at_once)):
            part = range(first, min(first + self.at_once, len(requests)))
            todo = [place for place in part if digests[place] not in self.known]
            seeded = Sampling(sampling.temperature, sampling.top_p, sampling.seed + number)
            found = self.engine.generate([requests[place] for place in todo], seeded) if todo else []
            new = {digests[place]: completion for place, completion in zip(todo, found, strict=True)}
            self.lines.append({"digest": digest} | asdict(one) for digest, one in new.items())
            self.known |= new
        return [self.known[digest] for digest in digests]


def _completion(row: Mapping[str, Any]) -> Completion:
    log_probs = row["log_probs"]
    return Completion(tuple(row["ids"]), row["truncated"], None if log_probs is None else tuple(log_probs))


def _digest(request: Request, sampling: Sampling) -> str:
    text = json.dumps([asdict(request), asdict(sampling)])
    return hashlib.sha256(text.encode()).hexdigest()[:32]
