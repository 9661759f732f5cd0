"""Black-box LLMs behind one interface: a local model, any OpenAI-compatible chat server, a known surface.

A reply is cached under a hash of its request as soon as it is there, so a killed run resumes and
pays for nothing twice. A failure is never cached and never taken for an answer.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lib.inference import generate
from lib.runs import read_json, write_json

CHARACTERS_PER_TOKEN = 4  # of English text, roughly: for the estimate before the first request
TRY_AGAIN = (408, 429, 500, 502, 503, 504)
NO_USE = (401, 403, 404)  # the key, the model or the address is wrong: every request would fail
LONGEST_WAIT = 60.0  # seconds


class ServerError(RuntimeError):
    """The server refuses all requests; the message says what to mend."""


@dataclass(frozen=True)
class ChatReply:
    """What the model wrote, or why there is nothing to use: exactly one of text and problem is None."""

    text: str | None
    problem: str | None = None
    reasoning: str = ""


@dataclass(frozen=True)
class ChatServer:
    """An OpenAI-compatible server, e.g. ChatServer("http://localhost:8000/v1", "Qwen/Qwen3-8B", folder).

    `timeout` is in seconds for a whole reply, `price` in dollars per million tokens (in, out). The first
    wait before a retry is `backoff` seconds; it doubles each time, or is what the server asks for.
    """

    url: str
    model: str
    cache: Path
    key: str | None = field(default=None, repr=False)
    workers: int = 8
    timeout: float = 300.0
    retries: int = 5
    backoff: float = 1.0
    price: tuple[float, float] | None = None

    def ask(
        self, requests: Sequence[Mapping[str, Any]], *, show: Callable[[str], None] = print
    ) -> list[ChatReply]:
        """Answer requests of the form {"messages", "max_tokens", ...}, in order; the cost is shown first.

        A request that fails for good is a reply with a problem; ask again and only those are sent.
        """
        bodies = [{"model": self.model, **request} for request in requests]
        paths = [Path(self.cache) / f"{_digest(body)}.json" for body in bodies]
        missing = {path: body for path, body in zip(paths, bodies, strict=True) if not path.exists()}
        show(self._estimate(missing.values(), len(set(paths)) - len(missing)))
        failures: dict[Path, str] = {}
        pool = ThreadPoolExecutor(self.workers)
        try:
            sent = {pool.submit(self._fetch, path, body): path for path, body in missing.items()}
            for count, future in enumerate(as_completed(sent), 1):
                if problem := future.result():
                    failures[sent[future]] = problem
                if count % max(1, len(sent) // 10) == 0:
                    show(f"{count} of {len(sent)} requests done, {len(failures)} failed")
        finally:
            pool.shutdown(cancel_futures=True)
        return [ChatReply(None, failures[path]) if path in failures else _cached(path) for path in paths]

    def _estimate(self, bodies: Collection[Mapping[str, Any]], cached: int) -> str:
        tokens_in = sum(len(json.dumps(body["messages"])) for body in bodies) // CHARACTERS_PER_TOKEN
        tokens_out = sum(body["max_tokens"] for body in bodies)
        cost = "no price given"
        if self.price:
            dollars = (tokens_in * self.price[0] + tokens_out * self.price[1]) / 1e6
            cost = f"at most about {dollars:,.2f} $"
        return (
            f"{self.model}: {len(bodies):,} requests to send ({cached:,} more are cached), about "
            f"{tokens_in:,} tokens in and at most {tokens_out:,} out, {cost}"
        )

    def _fetch(self, path: Path, body: Mapping[str, Any]) -> str | None:
        """Get one reply into the cache; the problem if that cannot be done."""
        problem = ""
        for attempt in range(self.retries + 1):
            wait = self.backoff * 2**attempt
            try:
                write_json(path, {"request": body, **self._post(body)})
                return None
            except urllib.error.HTTPError as error:
                problem = f"HTTP {error.code}: {error.read(200).decode(errors='replace').strip()}"
                if error.code in NO_USE:
                    raise ServerError(
                        f"{self.url} answers {problem}. Check the address, the key and the model."
                    ) from None
                if error.code not in TRY_AGAIN:
                    return problem
                asked = error.headers.get("Retry-After", "")
                wait = float(asked) if asked.isdigit() else wait
            except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
                problem = f"{type(error).__name__}: {error}"
            except ValueError as error:
                problem = f"not a chat completion: {error}"
            if attempt < self.retries:
                # Not all at once again: that is what the server could not take.
                time.sleep(min(wait, LONGEST_WAIT) * random.uniform(1, 1.25))
        return f"{problem} ({self.retries + 1} tries)"

    def _post(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Send one request; ValueError where the answer is not a chat completion with a text."""
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers
        )
        deadline, received = time.monotonic() + self.timeout, b""
        with urllib.request.urlopen(request, timeout=self.timeout) as response:
            # urllib's own limit is for each read: a server that drips would never end.
            while chunk := response.read1(2**16):
                received += chunk
                if time.monotonic() > deadline:
                    raise TimeoutError(f"no complete reply within {self.timeout:g} s")
        answer = json.loads(received)
        try:
            choice = answer["choices"][0]
            message = choice["message"]
            text, reasoning = message["content"], message.get("reasoning_content") or message.get("reasoning")
        except (KeyError, IndexError, TypeError, AttributeError):
            raise ValueError(f"unknown shape {str(answer)[:200]}") from None
        if not isinstance(text, str) or not text.strip():
            raise ValueError("the message has no text")
        return {
            "text": text,
            "reasoning": reasoning or "",
            "finish_reason": choice.get("finish_reason"),
            "usage": answer.get("usage"),
        }


def _cached(path: Path) -> ChatReply:
    """A reply from the cache. One that was cut off stays so: a larger max_tokens is another request."""
    reply = read_json(path)
    if reply["finish_reason"] not in (None, "stop", "eos"):
        return ChatReply(None, f"the reply ended by {reply['finish_reason']}")
    return ChatReply(reply["text"], reasoning=reply["reasoning"])


def _digest(body: Mapping[str, Any]) -> str:
    """The address and the key are left out: the same model may move."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


# ---- the frozen LLM of AdaReasoner --------------------------------------------------------------


class Request(NamedTuple):
    """One call of a frozen LLM. The seed tells repeated samples of the same prompt apart."""

    prompt: str
    temperature: float
    seed: int = 0


class LLM(Protocol):
    """A frozen LLM: the reply to each request, in order; None where there is none to use."""

    def ask(self, requests: Sequence[Request]) -> list[str | None]: ...


class LocalLLM:
    """A model in this process. A reply is asked for once and kept, in `cache` too where a file is given.

    Requests of one temperature are sampled together, so a reply is reproducible given the same calls in the
    same order; the cache makes it so for single ones. At temperature 0 the seed makes no difference.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_new_tokens: int = 160,
        batch_size: int = 256,
        cache: Path | None = None,
    ):
        self.model, self.tokenizer = model, tokenizer
        self.max_new_tokens, self.batch_size, self.cache = max_new_tokens, batch_size, cache
        self.replies: dict[Request, str | None] = {}
        self.num_tokens = 0  # generated by this object
        if cache is not None and cache.exists():
            for line in cache.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError):  # a last line that a kill cut short
                    *request, text = json.loads(line)
                    self.replies[Request(*request)] = text

    def ask(self, requests: Sequence[Request]) -> list[str | None]:
        """The reply to each request; None for one that did not end within `max_new_tokens`."""
        requests = [request._replace(seed=0) if request.temperature == 0 else request for request in requests]
        missing = sorted({r for r in requests if r not in self.replies}, key=lambda r: (r[1], r[2], r[0]))
        for temperature in sorted({request.temperature for request in missing}):
            group = [request for request in missing if request.temperature == temperature]
            responses = generate(
                self.model,
                self.tokenizer,
                [request.prompt for request in group],
                max_new_tokens=self.max_new_tokens,
                temperature=temperature,
                seed=group[0].seed,
                batch_size=self.batch_size,
            )
            self.num_tokens += sum(response.num_tokens for response in responses)
            texts = [None if response.is_truncated else response.text for response in responses]
            self._keep(group, texts)
        return [self.replies[request] for request in requests]

    def _keep(self, requests: Sequence[Request], texts: Sequence[str | None]) -> None:
        self.replies |= dict(zip(requests, texts, strict=True))
        if self.cache is not None:
            self.cache.parent.mkdir(parents=True, exist_ok=True)
            with self.cache.open("a", encoding="utf-8") as file:
                for request, text in zip(requests, texts, strict=True):
                    file.write(json.dumps([*request, text]) + "\n")


@dataclass(frozen=True)
class ServerLLM:
    """A chat server as a frozen LLM: one user message, no system prompt (paper, section 4)."""

    server: ChatServer
    max_tokens: int = 1024
    top_p: float = 0.1  # the paper's value

    def ask(self, requests: Sequence[Request]) -> list[str | None]:
        """The reply to each request; None where the server gave none. ServerError if it refuses all."""
        bodies = [
            {
                "messages": [{"role": "user", "content": request.prompt}],
                "temperature": request.temperature,
                "seed": request.seed,
                "top_p": self.top_p,
                "max_tokens": self.max_tokens,
            }
            for request in requests
        ]
        return [reply.text for reply in self.server.ask(bodies, show=lambda _: None)]


class Surface:
    """A response surface: the expected reward of every action in every context is known, so is regret.

    values: (C, A) in [0, 1]; contexts: (N,), the context of each question. Called, it draws rewards 0 or 1.
    """

    def __init__(self, values: torch.Tensor, contexts: torch.Tensor):
        if values.min() < 0 or values.max() > 1:
            raise ValueError(f"values must lie in [0, 1], got {values.min():.2f} to {values.max():.2f}")
        if contexts.max() >= len(values):
            raise ValueError(f"contexts name row {contexts.max()}, but values has {len(values)} rows")
        self.values, self.contexts = values, contexts

    def expected(self, questions: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """The expected reward of actions (B,) on questions (B,)."""
        return self.values[self.contexts[questions], actions]

    def optimal(self, questions: torch.Tensor) -> torch.Tensor:
        """The best expected reward on questions (B,)."""
        return self.values[self.contexts[questions]].max(-1).values

    def __call__(self, questions: torch.Tensor, actions: torch.Tensor, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed + 2)
        return torch.bernoulli(self.expected(questions, actions), generator=generator)
