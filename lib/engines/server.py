"""Any OpenAI-compatible server that chats.

A reply is cached under a hash of its request as soon as it is there. So a killed run resumes and pays
for nothing twice. A failure is never cached and never taken for an answer.
"""

import asyncio
import hashlib
import json
import os
import random
import re
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
from anyio.from_thread import start_blocking_portal

from lib.runs import read_json, write_json

KEY_VARIABLE = "OPENAI_API_KEY"
CHARACTERS_PER_TOKEN = 4  # of English text, roughly: for the estimate before the first request
NO_USE = (*range(300, 400), 401, 403, 404)  # key, model or address is wrong: every request would fail
LONGEST_WAIT = 60.0  # seconds
LARGEST_REPLY, LARGEST_ERROR = 2**26, 2**12  # bytes
WHOLE = (None, "stop", "eos", "eos_token", "end_turn")  # how servers call the end of a whole reply
CUT = ("length", "max_tokens", "content_filter")  # and of one that the model could not finish
OPTIONS = ("max_tokens", "top_p", "seed", "temperature")  # there are models that refuse them
REFUSAL = re.compile(
    "unsupported|not (?:support|permitted|allowed)|forbidden|unrecogni[sz]ed|unknown|deprecated|cannot both",
    re.I,
)


class ServerError(RuntimeError):
    """The server refuses all requests; the message says what to mend."""


class _StatusError(openai.OpenAIError):
    """A reply that is no success, with the first of its words; the client passes it on as it is."""

    def __init__(self, status: int, words: str, retry_after: str):
        super().__init__(f"HTTP {status}: {words[:200].strip()}")
        self.status, self.words = status, words
        self.wait = float(retry_after) if retry_after.isdecimal() else None


@dataclass(frozen=True)
class ChatReply:
    """What the model wrote, or why there is nothing to use: exactly one of text and problem is None.

    `cut`: it did reply, but not to the end, which is a failure of its own. `tokens` are those that it wrote,
    thoughts included, as the server counts them.
    """

    text: str | None
    problem: str | None = None
    reasoning: str = ""
    cut: bool = False
    tokens: int | None = None


@dataclass(frozen=True)
class ChatServer:
    """An OpenAI-compatible server, e.g. ChatServer("http://localhost:8000/v1", "Qwen/Qwen3-8B", folder).

    `key_variable` names the environment variable that holds the key. The key goes to this server alone (no
    redirect is followed), and into no file or message. `timeout` is in seconds for a whole reply, `price` in
    dollars per million tokens (in, out). The first wait before a retry is `backoff` seconds; it doubles each
    time, or is what the server asks for. What the model refuses by name is left out from then on, with a
    warning; for `max_tokens` it gets `max_completion_tokens`.
    """

    url: str
    model: str
    cache: Path
    key_variable: str = KEY_VARIABLE
    workers: int = 8
    timeout: float = 300.0
    retries: int = 5
    backoff: float = 1.0
    price: tuple[float, float] = (0.0, 0.0)
    refused: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_address(self.url, self.key_variable)

    def ask(
        self, requests: Sequence[Mapping[str, Any]], *, show: Callable[[str], None] = print
    ) -> list[ChatReply]:
        """Answer requests of the form {"messages", "max_tokens", ...}, in order; the cost is shown first.

        A request that fails for good is a reply with a problem; ask again and only those are sent.
        """
        bodies = [{"model": self.model, **request} for request in requests]
        paths = [Path(self.cache) / f"{_digest(body)}.json" for body in bodies]
        missing = {path: body for path, body in zip(paths, bodies, strict=True) if not path.exists()}
        show(self.estimate(list(missing.values()), cached=len(set(paths)) - len(missing)))
        with start_blocking_portal() as portal:  # a thread: a notebook's own loop is busy; Ctrl-C cancels it
            failures = portal.call(self._fetch_all, missing, show)
        return [ChatReply(None, failures[path]) if path in failures else _cached(path) for path in paths]

    def estimate(self, requests: Collection[Mapping[str, Any]], *, cached: int = 0) -> str:
        """What requests would take: their number, tokens, and dollars where a price is given."""
        tokens_in = sum(len(json.dumps(one["messages"])) for one in requests) // CHARACTERS_PER_TOKEN
        tokens_out = sum(one["max_tokens"] for one in requests)
        cost = "no price given"
        if any(self.price):
            dollars = (tokens_in * self.price[0] + tokens_out * self.price[1]) / 1e6
            cost = f"at most about {dollars:,.2f} $"
        return (
            f"{self.model}: {len(requests):,} requests to send ({cached:,} more are cached), about "
            f"{tokens_in:,} tokens in and at most {tokens_out:,} out, {cost}"
        )

    async def _fetch_all(
        self, missing: Mapping[Path, Mapping[str, Any]], show: Callable[[str], None]
    ) -> dict[Path, str]:
        """Get replies into the cache, `workers` at a time; the problems of those that cannot be had."""
        failures: dict[Path, str] = {}
        gate, begun, refusals = asyncio.Semaphore(self.workers), time.monotonic(), 0
        hooks = {"response": [_raise_for_status]}
        http = openai.DefaultAsyncHttpxClient(follow_redirects=False, event_hooks=hooks)
        named = address(self.url, self.key_variable, self.timeout)
        async with openai.AsyncOpenAI(**named, max_retries=0, http_client=http) as client:

            async def fetch(path: Path, body: Mapping[str, Any]) -> bool:
                async with gate:
                    problem, status = await self._fetch(client, path, body)
                if problem:
                    failures[path] = problem
                return status in NO_USE

            tasks = [asyncio.create_task(fetch(path, body)) for path, body in missing.items()]
            try:
                for count, done in enumerate(asyncio.as_completed(tasks), 1):
                    refusals += await done
                    if refusals == count >= min(self.workers, len(tasks)) and self._is_refused(refusals):
                        problem = f"{self.url} answers {next(iter(failures.values()))}"
                        raise ServerError(f"{problem}. Check the address, the key and the model.")
                    if count == 1 or count % max(1, len(tasks) // 10) == 0:
                        left = (time.monotonic() - begun) * (len(tasks) - count) / max(count, self.workers)
                        show(_progress(count, len(tasks), left, failures))
            finally:
                for task in tasks:
                    task.cancel()
        return failures

    def _is_refused(self, refusals: int) -> bool:
        """Whether refusals alone mean all requests, and not a few questions that it will not take."""
        return refusals >= self.workers or not any(Path(self.cache).glob("*.json"))

    async def _fetch(
        self, client: openai.AsyncOpenAI, path: Path, body: Mapping[str, Any]
    ) -> tuple[str, int]:
        """Get one reply into the cache; else the problem, with the status where the server named one."""
        tries, problem = 0, ""
        while tries <= self.retries:
            sent, wait, status = self._sent(body), self.backoff * 2**tries, 0
            try:
                reply = await self._post(client, sent)
            except _StatusError as error:
                problem, status = _masked(self, str(error)), error.status
                if self._learns(error, sent):
                    continue
                if status < 500 and status not in (408, 429):
                    return problem, status
                wait = error.wait or wait
            except TimeoutError:
                problem = f"no complete reply within {self.timeout:g} s"
            except Exception as error:  # whatever a stranger's bytes can do must not end the other requests
                cause = error.__cause__ or error
                problem = _masked(self, f"no chat completion: {type(cause).__name__}: {cause!s:.200}")
            else:
                write_json(path, {"request": body, **reply})
                return "", 0
            tries += 1
            if tries <= self.retries:
                # Not all at once again: that is what the server could not take.
                await asyncio.sleep(min(wait, LONGEST_WAIT) * random.uniform(1, 1.25))
        return f"{problem} ({tries} tries)", status

    def _sent(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A request without what the model refuses."""
        sent = {name: value for name, value in body.items() if name not in self.refused}
        return sent | ({"max_completion_tokens": body["max_tokens"]} if "max_tokens" in self.refused else {})

    def _learns(self, error: _StatusError, sent: Mapping[str, Any]) -> bool:
        """Whether the server refuses an option that was sent, and calls it by its name."""
        if error.status not in (400, 422) or not REFUSAL.search(error.words):
            return False
        named = (name for name in OPTIONS if re.search(rf"""['"`]{name}['"`]""", error.words))
        found = next((name for name in named if name in sent), "")
        if found and found not in self.refused:
            self.refused.add(found)
            said = _masked(self, str(error))
            warnings.warn(f"{self.model} refuses {found}; it goes without from now on. {said}", stacklevel=2)
        return bool(found)

    async def _post(self, client: openai.AsyncOpenAI, body: Mapping[str, Any]) -> dict[str, Any]:
        """Send one request; ValueError where the answer is not a chat completion."""
        received = b""
        # The client's own limit is for each read: a server that drips would never end.
        async with asyncio.timeout(self.timeout):
            create = client.chat.completions.with_streaming_response.create
            async with create(model=self.model, messages=body["messages"], extra_body=dict(body)) as response:
                async for chunk in response.iter_bytes():
                    received += chunk
                    if len(received) > LARGEST_REPLY:
                        raise ValueError(f"more than {LARGEST_REPLY:,} bytes")
        return _read_reply(json.loads(_masked(self, received.decode())))


async def _raise_for_status(response: Any) -> None:
    """A hook of the client: what is no success is an error with as many words as a person reads."""
    if response.is_success:
        return
    words = b""
    async for chunk in response.aiter_bytes():
        words += chunk
        if len(words) > LARGEST_ERROR:
            break
    said = words[:LARGEST_ERROR].decode(errors="replace")
    raise _StatusError(response.status_code, said, response.headers.get("Retry-After", ""))


def check_address(url: str, key_variable: str) -> None:
    if not url.startswith(("http://", "https://")) or "@" in url:
        raise ValueError(
            "url must start with http:// or https:// and hold no password"
            + ("" if "@" in url else f", got {url!r}")
        )
    if not key_variable.isidentifier():
        raise ValueError("key_variable must be the name of an environment variable, not the key itself")
    if key_variable != KEY_VARIABLE and not os.environ.get(key_variable):
        raise ValueError(f"there is no environment variable {key_variable}: it should hold the key of {url}")


def address(url: str, key_variable: str, timeout: float) -> dict[str, Any]:
    """What a client of the server needs; the key is read here, and goes nowhere else."""
    return {"base_url": url, "api_key": os.environ.get(key_variable) or "none", "timeout": timeout}


def _masked(server: ChatServer, text: str) -> str:
    """What a server says, without the key that it may repeat."""
    key = os.environ.get(server.key_variable)
    return text.replace(key, "[key]") if key else text


def _progress(count: int, total: int, left: float, failures: Mapping[Path, str]) -> str:
    time_left = f"about {left / 60:.0f} min left" if left > 90 else f"about {left:.0f} s left"
    last = f", the last by {list(failures.values())[-1]}" if failures else ""
    return f"{count} of {total} requests done, {time_left}, {len(failures)} failed{last}"


def _read_reply(answer: Any) -> dict[str, Any]:
    """What is kept of a chat completion; ValueError where there is no text in it, unless it was cut."""
    try:
        choice = answer["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        text, reasoning = message["content"], message.get("reasoning_content") or message.get("reasoning")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ValueError(f"unknown shape {str(answer)[:200]}") from None
    if reason not in (*WHOLE, *CUT):
        raise ValueError(f"it ended by {reason!r}")
    text = "" if text is None and reason in CUT else text  # it thought until there was no room left
    if not isinstance(text, str) or not (text.strip() or reason in CUT):
        raise ValueError("the message has no text")
    if not isinstance(reasoning or "", str):
        raise ValueError("reasoning must be text")
    return {"text": text, "reasoning": reasoning or "", "finish_reason": reason, "usage": answer.get("usage")}


def _cached(path: Path) -> ChatReply:
    """A reply from the cache. One that was cut off stays so: a larger max_tokens is another request."""
    reply = read_json(path)
    usage = reply["usage"]
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    kept: dict[str, Any] = {"tokens": tokens if isinstance(tokens, int) and tokens >= 0 else None}
    if reply["finish_reason"] in CUT:
        return ChatReply(None, f"the reply ended by {reply['finish_reason']}", cut=True, **kept)
    return ChatReply(reply["text"], reasoning=reply["reasoning"], **kept)


def _digest(body: Mapping[str, Any]) -> str:
    """The address and the key are left out: the same model may move."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
