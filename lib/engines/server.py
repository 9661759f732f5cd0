"""Any OpenAI-compatible server: one that chats, and one that continues token ids (`ServerEngine`).

A chat reply is cached under a hash of its request as soon as it is there. So a killed run resumes and pays
for nothing twice. A failure is never cached and never taken for an answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

import openai
from anyio.from_thread import start_blocking_portal
from transformers import PreTrainedTokenizerBase

from lib.engines.base import NEVER, Completion, Request, Sampling, first_alone, request_seeds
from lib.runs import read_json, write_json

CHARACTERS_PER_TOKEN = 4  # of English text, roughly: for the estimate before the first request
NO_USE = (*range(300, 400), 401, 403, 404)  # key, model or address is wrong: every request would fail
LONGEST_WAIT = 60.0  # seconds
LARGEST_REPLY = 2**26  # bytes


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
    wait before a retry is `backoff` seconds; it doubles each time, or is what the server asks for. The key
    is read from the environment, OPENAI_API_KEY; no redirect is followed, so this server alone gets it.
    """

    url: str
    model: str
    cache: Path
    key: str | None = field(default_factory=lambda: os.environ.get("OPENAI_API_KEY"), repr=False)
    workers: int = 8
    timeout: float = 300.0
    retries: int = 5
    backoff: float = 1.0
    price: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url must start with http:// or https://, got {self.url!r}")

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
        with start_blocking_portal() as portal:  # a thread: a notebook's own loop is busy; Ctrl-C cancels it
            failures = portal.call(self._fetch_all, missing, show)
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

    async def _fetch_all(
        self, missing: Mapping[Path, Mapping[str, Any]], show: Callable[[str], None]
    ) -> dict[Path, str]:
        """Get replies into the cache, `workers` at a time; the problems of those that cannot be had."""
        failures: dict[Path, str] = {}
        gate = asyncio.Semaphore(self.workers)
        http = openai.DefaultAsyncHttpxClient(follow_redirects=False)
        async with openai.AsyncOpenAI(**_address(self), max_retries=0, http_client=http) as client:

            async def fetch(path: Path, body: Mapping[str, Any]) -> None:
                async with gate:
                    if problem := await self._fetch(client, path, body):
                        failures[path] = problem

            tasks = [asyncio.create_task(fetch(path, body)) for path, body in missing.items()]
            try:
                for count, done in enumerate(asyncio.as_completed(tasks), 1):
                    await done
                    if count % max(1, len(tasks) // 10) == 0:
                        show(f"{count} of {len(tasks)} requests done, {len(failures)} failed")
            finally:
                for task in tasks:
                    task.cancel()
        return failures

    async def _fetch(self, client: openai.AsyncOpenAI, path: Path, body: Mapping[str, Any]) -> str | None:
        """Get one reply into the cache; the problem if that cannot be done."""
        problem = ""
        for attempt in range(self.retries + 1):
            wait = self.backoff * 2**attempt
            try:
                write_json(path, {"request": body, **await self._post(client, body)})
                return None
            except openai.APIStatusError as error:
                problem = f"HTTP {error.status_code}: {error.response.text[:200].strip()}"
                if error.status_code in NO_USE:
                    raise ServerError(
                        f"{self.url} answers {problem}. Check the address, the key and the model."
                    ) from None
                if error.status_code < 500 and error.status_code not in (408, 429):
                    return problem
                asked = error.response.headers.get("Retry-After", "")
                wait = float(asked) if asked.isdecimal() else wait
            except TimeoutError:
                problem = f"no complete reply within {self.timeout:g} s"
            except openai.APIError as error:
                problem = f"{type(error).__name__}: {error}"
            except (ValueError, RecursionError) as error:
                problem = f"not a chat completion: {error}"
            if attempt < self.retries:
                # Not all at once again: that is what the server could not take.
                await asyncio.sleep(min(wait, LONGEST_WAIT) * random.uniform(1, 1.25))
        return f"{problem} ({self.retries + 1} tries)"

    async def _post(self, client: openai.AsyncOpenAI, body: Mapping[str, Any]) -> dict[str, Any]:
        """Send one request; ValueError where the answer is not a chat completion with a text."""
        received = b""
        # The client's own limit is for each read: a server that drips would never end.
        async with asyncio.timeout(self.timeout):
            create = client.chat.completions.with_streaming_response.create
            async with create(model=self.model, messages=body["messages"], extra_body=dict(body)) as response:
                async for chunk in response.iter_bytes():
                    received += chunk
                    if len(received) > LARGEST_REPLY:
                        raise ValueError(f"more than {LARGEST_REPLY:,} bytes")
        return _read_reply(json.loads(received))


def _address(server: ChatServer | ServerEngine) -> dict[str, Any]:
    return {"base_url": server.url, "api_key": server.key or "none", "timeout": server.timeout}


def _read_reply(answer: Any) -> dict[str, Any]:
    """What is kept of a chat completion; ValueError where there is no text in it."""
    try:
        choice = answer["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        text, reasoning = message["content"], message.get("reasoning_content") or message.get("reasoning")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ValueError(f"unknown shape {str(answer)[:200]}") from None
    if not isinstance(text, str) or not text.strip():
        raise ValueError("the message has no text")
    if not isinstance(reasoning or "", str) or not isinstance(reason or "", str):
        raise ValueError("reasoning and finish_reason must be text")
    return {"text": text, "reasoning": reasoning or "", "finish_reason": reason, "usage": answer.get("usage")}


def _cached(path: Path) -> ChatReply:
    """A reply from the cache. One that was cut off stays so: a larger max_tokens is another request."""
    reply = read_json(path)
    if reply["finish_reason"] not in (None, "stop", "eos"):
        return ChatReply(None, f"the reply ended by {reply['finish_reason']}")
    return ChatReply(reply["text"], reasoning=reply["reasoning"])


def _digest(body: Mapping[str, Any]) -> str:
    """The address and the key are left out: the same model may move."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


# ---- token ids in, token ids out ---------------------------------------------------------------


@dataclass(eq=False, repr=False)
class ServerEngine:
    """An engine behind `/v1/completions`, as vLLM, SGLang and llama.cpp serve it.

    Prompts are sent as token ids, or with `as_text` as text (`transformers serve` takes nothing else). Where
    the server names no ids, its text is encoded again. Each request has a seed of its own. See `Kept` to
    keep what was generated.
    """

    url: str
    model: str
    tokenizer: PreTrainedTokenizerBase
    _: KW_ONLY
    key: str | None = None
    as_text: bool = False
    workers: int = 256  # requests at once, which vLLM puts into batches
    timeout: float = 600.0
    retries: int = 5

    def __post_init__(self) -> None:
        http = openai.DefaultHttpxClient(follow_redirects=False)  # the key is for this server
        self.client = openai.OpenAI(**_address(self), max_retries=self.retries, http_client=http)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion for each request, in order; ServerError where one cannot be had."""
        pool = ThreadPoolExecutor(self.workers)

        def draw(some: Sequence[Request]) -> list[Completion]:
            seeds = request_seeds(some, sampling.seed)
            return list(pool.map(lambda one, seed: self._complete(one, sampling, seed), some, seeds))

        try:
            return first_alone(requests, draw)
        finally:
            pool.shutdown(cancel_futures=True)

    def _complete(self, request: Request, sampling: Sampling, seed: int) -> Completion:
        start: Any = [*request.prompt_ids, *request.forced_ids]
        if self.as_text and request.never_first:
            raise ServerError(f"{self.url} takes text alone, so it cannot keep tokens from coming first")
        barred = dict.fromkeys(map(str, request.never_first), NEVER)
        by_id = {"return_token_ids": True, "logprobs": 0, "logit_bias": barred}
        try:
            answer = self.client.completions.create(
                model=self.model,
                prompt=self.tokenizer.decode(start) if self.as_text else start,
                max_tokens=request.max_new_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=seed % 2**31,
                extra_body={} if self.as_text else by_id,
            )
            choice = answer.choices[0]
        except (openai.OpenAIError, IndexError, TypeError) as error:
            raise ServerError(
                f"{self.url} gives no completion: {error}. Check the address, the key and the model."
            ) from error
        truncated, ids = choice.finish_reason == "length", getattr(choice, "token_ids", None)
        if ids is None:
            ids = self.tokenizer(choice.text, add_special_tokens=False).input_ids
            ids += [] if truncated else [self.tokenizer.eos_token_id]
        log_probs = choice.logprobs and tuple(choice.logprobs.token_logprobs or ())
        return Completion((*request.forced_ids, *ids), truncated, log_probs or None)
