"""OpenAI-compatible servers, and those that chat.

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
from dataclasses import KW_ONLY, dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar

import openai
from anyio.from_thread import start_blocking_portal

from lib.runs import read_json, write_json

KEY_VARIABLE = "OPENAI_API_KEY"
SHORTEST_KEY = 8  # characters: "none", "EMPTY" or "1" are no secret, and a reply may well hold them as words
HALVES = re.compile("[\ud800-\udfff]")  # of characters: JSON can name one alone, but no file takes it
CHARACTERS_PER_TOKEN = 4  # of English text, roughly: for the estimate before the first request
NOBODY = -1  # the status of a server that cannot be reached
NO_USE = (NOBODY, *range(300, 400), 401, 403, 404)  # key, model or address is wrong: all requests would fail
LONGEST_WAIT, LONGEST_CONNECT = 60.0, 15.0  # seconds
LARGEST_REPLY, LARGEST_ERROR = 2**26, 2**12  # bytes
WHOLE = (None, "stop", "eos", "eos_token", "end_turn")  # how servers call the end of a whole reply
CUT = ("length", "max_tokens", "content_filter")  # and of one that the model could not finish
OPTIONS = ("max_tokens", "top_p", "seed", "temperature")  # there are models that refuse them
REFUSAL = re.compile(
    "unsupported|not (?:support|permitted|allowed)|forbidden|unrecogni[sz]ed|unknown|deprecated|cannot both",
    re.I,
)

Body = Mapping[str, Any]
Bodies = Mapping[Any, Body]  # by whatever names a reply
Keep = Callable[[Any, Any], None]  # (name, reply)
Show = Callable[[str], None]


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
class Server:
    """An OpenAI-compatible server: what its two kinds of client share, `workers` requests at a time.

    `key_variable` names the environment variable that holds the key. The key goes to this server alone (no
    redirect is followed), and into no file or message. `timeout` is in seconds for a whole reply. The first
    wait before a retry is `backoff` seconds; it doubles each time, or is what the server asks for. What the
    model refuses by name is left out from then on, with a warning; `max_tokens` has another name to try.
    """

    url: str
    model: str
    _: KW_ONLY
    key_variable: str = KEY_VARIABLE
    workers: int = 8
    timeout: float = 300.0
    retries: int = 5
    backoff: float = 1.0
    refused: set[str] = field(default_factory=set, init=False, repr=False, compare=False)
    answered: set[str] = field(default_factory=set, init=False, repr=False, compare=False)  # who ever did
    endpoint: ClassVar[str]

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")) or "@" in self.url:
            said = "" if "@" in self.url else f", got {self.url!r}"
            raise ValueError(f"url must start with http:// or https:// and hold no password{said}")
        if not self.key_variable.isidentifier():
            raise ValueError("key_variable must be the name of an environment variable, not the key itself")
        if self.key_variable != KEY_VARIABLE and not os.environ.get(self.key_variable):
            missing = f"there is no environment variable {self.key_variable}"
            raise ValueError(f"{missing}: it should hold the key of {self.url}")

    def fetch(self, bodies: Bodies, keep: Keep, show: Show = lambda line: None) -> dict[Any, str]:
        """Send bodies by name, and `keep` each reply under its name; the problems of those that have none.

        ServerError where all are refused, and where nobody is there who ever answered.
        """
        with start_blocking_portal() as portal:  # a thread: a notebook's own loop is busy; Ctrl-C cancels it
            return portal.call(self._fetch_all, bodies, keep, show)

    async def _fetch_all(self, bodies: Bodies, keep: Keep, show: Show) -> dict[Any, str]:
        failures: dict[Any, str] = {}
        gate, begun, refusals = asyncio.Semaphore(self.workers), time.monotonic(), 0
        hooks = {"response": [_raise_for_status]}
        http = openai.DefaultAsyncHttpxClient(follow_redirects=False, event_hooks=hooks)
        key = os.environ.get(self.key_variable) or "none"  # read here, and it goes nowhere else
        limits = openai.Timeout(self.timeout, connect=min(self.timeout, LONGEST_CONNECT))
        named: dict[str, Any] = {"base_url": self.url, "api_key": key, "timeout": limits, "http_client": http}
        async with openai.AsyncOpenAI(**named, max_retries=0) as client:

            async def fetch(name: Any, body: Body) -> bool:
                async with gate:
                    reply, problem, status = await self._fetch(client, body)
                if problem:
                    failures[name] = problem
                else:
                    self.answered.add(self.url)
                    keep(name, reply)
                return status in NO_USE

            tasks = [asyncio.create_task(fetch(name, body)) for name, body in bodies.items()]
            try:
                for count, done in enumerate(asyncio.as_completed(tasks), 1):
                    refusals += await done
                    enough = refusals >= self.workers or not self.answered  # else a few that it will not take
                    if refusals == count >= min(self.workers, len(tasks)) and enough:
                        problem = f"{self.url} gives no completion: {next(iter(failures.values()))}"
                        raise ServerError(f"{problem}. Check the address, the key and the model.")
                    if count == 1 or count % max(1, len(tasks) // 10) == 0:
                        left = (time.monotonic() - begun) * (len(tasks) - count) / max(count, self.workers)
                        show(_progress(count, len(tasks), left, failures))
            finally:
                for task in tasks:
                    task.cancel()
        return failures

    async def _fetch(self, client: openai.AsyncOpenAI, body: Body) -> tuple[Any, str, int]:
        """One reply; else the problem, with the status where the server named one."""
        tries, problem = 0, ""
        while tries <= self.retries:
            sent, wait, status = self._sent(body), self.backoff * 2**tries, 0
            try:
                return await self._post(client, sent), "", 0
            except _StatusError as error:
                problem, status = self._masked(str(error)), error.status
                if self._learns(error, sent):
                    continue
                if status < 500 and status not in (408, 429):
                    return None, problem, status
                wait = error.wait or wait
            except TimeoutError:
                problem = f"no complete reply within {self.timeout:g} s"
            except Exception as error:  # whatever a stranger's bytes can do must not end the other requests
                cause = error.__cause__ or error
                problem = self._masked(f"no completion: {type(cause).__name__}: {cause!s:.200}")
                # By name, for the client's own library of HTTP is none of ours.
                if type(cause).__name__ in ("ConnectError", "ConnectTimeout") and not self.answered:
                    return None, f"nobody is there: {cause!s:.200}", NOBODY
            tries += 1
            if tries <= self.retries:
                # Not all at once again: that is what the server could not take.
                await asyncio.sleep(min(wait, LONGEST_WAIT) * random.uniform(1, 1.25))
        return None, f"{problem} ({tries} tries)", status

    async def _post(self, client: openai.AsyncOpenAI, body: Body) -> Any:
        """Send one request; ValueError where the answer is none of the kind that is wanted."""
        received = bytearray()
        create = attrgetter(self.endpoint)(client).with_streaming_response.create
        start = {name: body[name] for name in ("messages", "prompt") if name in body}
        # The client's own limit is for each read: a server that drips would never end.
        async with asyncio.timeout(self.timeout):
            async with create(model=self.model, extra_body=dict(body), **start) as response:
                async for chunk in response.iter_bytes():
                    received += chunk
                    if len(received) > LARGEST_REPLY:
                        raise ValueError(f"more than {LARGEST_REPLY:,} bytes")
        answer = self._clean(json.loads(received.decode()))
        try:
            choice = answer["choices"][0]
            if (reason := choice.get("finish_reason")) not in (*WHOLE, *CUT):
                raise ValueError(f"it ended by {reason!r}")
            return self._read(choice, answer.get("usage"))
        except (KeyError, IndexError, TypeError, AttributeError):
            raise ValueError(f"unknown shape {str(answer)[:200]}") from None

    def _masked(self, text: str) -> str:
        """What a server says, without the key that it may repeat, be it escaped."""
        key = os.environ.get(self.key_variable, "")
        return text if len(key) < SHORTEST_KEY else re.sub(r"\\?".join(map(re.escape, key)), "[key]", text)

    def _clean(self, value: Any) -> Any:
        """An answer whose texts are masked and can be written into a file."""
        if isinstance(value, dict):
            return {self._clean(name): self._clean(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [self._clean(inner) for inner in value]
        return self._masked(HALVES.sub("\ufffd", value)) if isinstance(value, str) else value

    def _sent(self, body: Body) -> dict[str, Any]:
        """A request without what the model refuses."""
        sent = {name: value for name, value in body.items() if name not in self.refused}
        return sent | ({"max_completion_tokens": body["max_tokens"]} if "max_tokens" in self.refused else {})

    def _learns(self, error: _StatusError, sent: Body) -> bool:
        """Whether the server refuses an option that was sent, and calls it by its name."""
        if error.status not in (400, 422) or not REFUSAL.search(error.words):
            return False
        named = (name for name in OPTIONS if re.search(rf"""['"`]{name}['"`]""", error.words))
        found = next((name for name in named if name in sent), "")
        if found and found not in self.refused:
            self.refused.add(found)
            said = self._masked(str(error))
            warnings.warn(f"{self.model} refuses {found}; it goes without from now on. {said}", stacklevel=2)
        return bool(found)

    def _read(self, choice: Any, usage: Any) -> Any:
        """What is kept of a completion; ValueError where it is none."""
        raise NotImplementedError


@dataclass(frozen=True)
class ChatServer(Server):
    """A server that chats, e.g. ChatServer("http://localhost:8000/v1", "Qwen/Qwen3-8B", folder).

    `price` is in dollars per million tokens (in, out).
    """

    cache: Path
    price: tuple[float, float] = field(default=(0.0, 0.0), kw_only=True)
    endpoint = "chat.completions"

    def ask(self, requests: Sequence[Body], *, show: Show = print) -> list[ChatReply]:
        """Answer requests of the form {"messages", "max_tokens", ...}, in order; the cost is shown first.

        A request that fails for good is a reply with a problem; ask again and only those are sent.
        """
        bodies = [{"model": self.model, **request} for request in requests]
        texts = [json.dumps(body, sort_keys=True).encode() for body in bodies]  # no address: a model may move
        paths = [Path(self.cache) / f"{hashlib.sha256(text).hexdigest()}.json" for text in texts]
        missing = {path: body for path, body in zip(paths, bodies, strict=True) if not path.exists()}
        show(self.estimate(list(missing.values()), cached=len(set(paths)) - len(missing)))
        self.answered.update(path.name for path in Path(self.cache).glob("*.json"))
        failures = self.fetch(missing, lambda p, got: write_json(p, {"request": missing[p]} | got), show)
        return [ChatReply(None, failures[path]) if path in failures else _cached(path) for path in paths]

    def estimate(self, requests: Collection[Body], *, cached: int = 0) -> str:
        """What requests would take: their number, tokens, and dollars where a price is given."""
        tokens_in = sum(len(json.dumps(one["messages"])) for one in requests) // CHARACTERS_PER_TOKEN
        tokens_out = sum(one["max_tokens"] for one in requests)
        dollars = (tokens_in * self.price[0] + tokens_out * self.price[1]) / 1e6
        cost = f"at most about {dollars:,.2f} $" if any(self.price) else "no price given"
        return (
            f"{self.model}: {len(requests):,} requests to send ({cached:,} more are cached), about "
            f"{tokens_in:,} tokens in and at most {tokens_out:,} out, {cost}"
        )

    def _read(self, choice: Any, usage: Any) -> dict[str, Any]:
        """There has to be text in it, unless it was cut."""
        message, reason = choice["message"], choice.get("finish_reason")
        text, reasoning = message["content"], message.get("reasoning_content") or message.get("reasoning")
        text = "" if text is None and reason in CUT else text  # it thought until there was no room left
        if not isinstance(text, str) or not (text.strip() or reason in CUT):
            raise ValueError("the message has no text")
        if not isinstance(reasoning or "", str):
            raise ValueError("reasoning must be text")
        return {"text": text, "reasoning": reasoning or "", "finish_reason": reason, "usage": usage}


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


def _progress(count: int, total: int, left: float, failures: Mapping[Any, str]) -> str:
    time_left = f"about {left / 60:.0f} min left" if left > 90 else f"about {left:.0f} s left"
    last = f", the last by {list(failures.values())[-1]}" if failures else ""
    return f"{count} of {total} requests done, {time_left}, {len(failures)} failed{last}"


def _cached(path: Path) -> ChatReply:
    """A reply from the cache. One that was cut off stays so: a larger max_tokens is another request."""
    reply = read_json(path)
    usage = reply["usage"]
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    kept: dict[str, Any] = {"tokens": tokens if isinstance(tokens, int) and tokens >= 0 else None}
    if reply["finish_reason"] in CUT:
        return ChatReply(None, f"the reply ended by {reply['finish_reason']}", cut=True, **kept)
    return ChatReply(reply["text"], reasoning=reply["reasoning"], **kept)
