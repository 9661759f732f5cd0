"""The one interface of all engines: token ids in, token ids out. Completions can be kept in a file."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Annotated, Protocol

from transformers import PreTrainedTokenizerBase

from lib.checked import Range, check_fields
from lib.runs import KeptLines

NEVER = -100.0  # added to a logit: as far down as vLLM and OpenAI let anyone push a token


@dataclass(frozen=True)
class Request:
    """Continue `prompt_ids`, after `forced_ids`, by at most `max_new_tokens`, none of `never_first` at first.

    `key` is (task id, sample).
    """

    prompt_ids: tuple[int, ...]
    forced_ids: tuple[int, ...] = ()
    max_new_tokens: int = 160
    key: tuple[str, int] | None = None
    never_first: tuple[int, ...] = ()


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; temperature 0 is greedy. Each request makes a seed of its own from `seed`."""

    temperature: Annotated[float, Range(0)] = 0.0
    top_p: Annotated[float, Range(above=0, high=1)] = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)


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

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion for each request, in order."""


def request_seeds(requests: Sequence[Request], seed: int) -> list[int]:
    """A seed of 128 bits for each request, from `seed` and the request alone; equal requests are numbered.

    So a completion does not depend on what else is asked in the same call.
    """
    names = [(one.key, one.prompt_ids, one.forced_ids) for one in requests]
    pairs = zip(names, numbered(names), strict=True)
    hashes = (hashlib.sha256(repr((seed, *pair)).encode()) for pair in pairs)
    return [int.from_bytes(found.digest()[:16], "big") for found in hashes]


def numbered(names: Iterable[Hashable]) -> list[int]:
    """How many equal ones came before each: "a", "b", "a" -> 0, 0, 1."""
    counters: defaultdict[Hashable, count[int]] = defaultdict(count)
    return [next(counters[name]) for name in names]


def first_alone(
    requests: Sequence[Request], draw: Callable[[Sequence[Request]], list[Completion]]
) -> list[Completion]:
    """Completions by a `draw` that keeps `never_first` away all along: there, a token alone comes first."""
    heads = [replace(one, max_new_tokens=1) if one.never_first else one for one in requests]
    found = draw(heads)
    rests = {
        place: replace(one, forced_ids=first.ids, max_new_tokens=one.max_new_tokens - 1, never_first=())
        for place, (one, first) in enumerate(zip(requests, found, strict=True))
        if one.never_first and first.truncated and one.max_new_tokens > 1
    }
    for place, rest in zip(rests, draw(list(rests.values())), strict=True):
        first, others = found[place].log_probs, rest.log_probs
        found[place] = replace(rest, log_probs=first and others and first + others)
    return found


class Kept:
    """An engine whose completions are kept in a file, by task id, sample and all else that was asked.

    A call that was killed goes on where it was: `at_once` requests are generated and stored at a time. Since
    each request has a seed of its own, all draw what the engine alone would. Log-probs are not kept.
    """

    def __init__(self, engine: Engine, path: Path, *, at_once: int = 4096):
        self.engine, self.tokenizer, self.at_once = engine, engine.tokenizer, at_once
        self.lines = KeptLines(path)
        rows = self.lines.read()
        self.known = {row["digest"]: Completion(tuple(row["ids"]), row["truncated"]) for row in rows}

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion for each request, in order; only those that are not in the file are generated."""
        texts = (json.dumps([asdict(request), asdict(sampling)]) for request in requests)
        digests = [hashlib.sha256(text.encode()).hexdigest()[:32] for text in texts]
        if len(set(digests)) < len(digests):
            raise ValueError("two requests are the same: give each a key of its own (task id, sample)")
        todo = [place for place, digest in enumerate(digests) if digest not in self.known]
        for first in range(0, len(todo), self.at_once):
            part = todo[first : first + self.at_once]
            found = self.engine.generate([requests[place] for place in part], sampling)
            new = {digests[i]: replace(one, log_probs=None) for i, one in zip(part, found, strict=True)}
            self.lines.append({"digest": d, "ids": c.ids, "truncated": c.truncated} for d, c in new.items())
            self.known |= new
        return [self.known[digest] for digest in digests]
