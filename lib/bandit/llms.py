"""Black-box LLMs behind one interface: a local model, any OpenAI-compatible chat server, a known surface."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from lib.engines.ask import Policy, as_engine, respond, weights_behind
from lib.engines.base import Sampling
from lib.engines.server import ChatServer
from lib.runs import KeptLines, digest

CUT = ""


class Request(NamedTuple):
    """One call of a frozen LLM. The seed tells repeated samples of the same prompt apart."""

    prompt: str
    temperature: float
    seed: int = 0


class LLM(Protocol):
    """A frozen LLM: the reply to each request, in order.

    A reply that was cut at the limit of tokens is CUT: it failed. None: nobody replied, so nothing is known.
    """

    def ask(self, requests: Sequence[Request]) -> list[str | None]: ...


class LocalLLM:
    """A policy or an engine. A reply is asked for once and kept, with `cache` in a file for each model too.

    Requests of one temperature are sampled together, so a reply is reproducible given the same calls in the
    same order; the cache makes it so for single ones. At temperature 0 the seed makes no difference.
    """

    def __init__(self, policy: Policy, *, max_new_tokens: int = 160, cache: Path | None = None):
        self.engine, self.max_new_tokens = as_engine(policy), max_new_tokens
        self.setting = {"model": weights_behind(policy), "max_new_tokens": max_new_tokens}
        self.cache = KeptLines(cache.with_stem(f"{cache.stem}_{digest(self.setting)}")) if cache else None
        stored = self.cache.read() if self.cache else []
        self.replies: dict[Request, str | None] = {Request(*asked): text or CUT for *asked, text in stored}

    def ask(self, requests: Sequence[Request]) -> list[str | None]:
        """The reply to each request; CUT for one that did not end within `max_new_tokens`."""
        requests = [request._replace(seed=0) if request.temperature == 0 else request for request in requests]
        missing = sorted({r for r in requests if r not in self.replies}, key=lambda r: (r[1], r[2], r[0]))
        for temperature in sorted({request.temperature for request in missing}):
            group = [request for request in missing if request.temperature == temperature]
            keys = [(request.prompt, request.seed) for request in group]
            given: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "keys": keys}
            given["sampling"] = Sampling(temperature, seed=group[0].seed)
            responses = respond(self.engine, [request.prompt for request in group], **given)
            texts = [CUT if response.truncated else response.text for response in responses]
            self.replies |= dict(zip(group, texts, strict=True))
            if self.cache is not None:
                self.cache.append([*request, text] for request, text in zip(group, texts, strict=True))
        return [self.replies[request] for request in requests]


@dataclass(frozen=True)
class ServerLLM:
    """A chat server as a frozen LLM: one user message, no system prompt (paper, section 4)."""

    server: ChatServer
    max_tokens: int = 1024
    top_p: float = 0.1  # the paper's value

    @property
    def setting(self) -> dict[str, Any]:
        """What decides the replies; not the address, for the same model may move."""
        return {"model": self.server.model, "max_tokens": self.max_tokens, "top_p": self.top_p}

    def bodies(self, requests: Sequence[Request]) -> list[dict[str, Any]]:
        """What is sent for each request."""
        shared = {"top_p": self.top_p, "max_tokens": self.max_tokens}
        return [
            {"messages": [{"role": "user", "content": one.prompt}], "temperature": one.temperature}
            | {"seed": one.seed, **shared}
            for one in requests
        ]

    def ask(self, requests: Sequence[Request]) -> list[str | None]:
        """The reply to each request; a problem warns in the server's words. ServerError if it refuses all."""
        replies = self.server.ask(self.bodies(requests), show=lambda _: None)
        for problem in sorted({str(reply.problem) for reply in replies if reply.problem and not reply.cut}):
            warnings.warn(f"no reply from {self.server.model}: {problem}", stacklevel=2)
        # vLLM keeps the space that a tokenizer has before the first word; other servers drop it.
        return [CUT if reply.cut else reply.text and reply.text.strip() for reply in replies]
