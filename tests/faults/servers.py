"""A chat server that does everything wrong beside requests that it answers: no hang, no abort, no key."""

import random
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from lib.engines import server as client
from lib.engines.server import ChatServer

from .campaign import Found
from .hostile_server import (
    RIGHT,
    answer,
    answered,
    broken_transport,
    oddities,
    playing,
    refusals,
    wrong_bodies,
)

KEY = "sk-very-secret"
GOOD = 10


def case(rng: random.Random, folder: Path, number: int) -> Found:
    """All faults and oddities, shuffled among good requests, by as many workers as the seed says."""
    bad, odd = refusals() | wrong_bodies() | broken_transport(), oddities()
    good = {f"good {number}": answer(RIGHT) for number in range(GOOD)}
    names = [*bad, *odd, *good]
    rng.shuffle(names)
    options = {
        "workers": rng.choice((4, 16, 64)),
        "retries": rng.choice((0, 1)),
        "timeout": rng.choice((3.0, 5.0)),
    }
    begun = time.monotonic()
    replies, seen, problem = _ask(folder, names, bad | odd | good, options)
    broken = [f"the whole call ended: {problem}"] if problem else []
    for name, reply in replies.items():
        wrong = (reply.text is not None or not reply.problem) if name in bad else reply.text != answered(name)
        broken += [f"{name}: {reply}"] if wrong else []
    if any(KEY in text for text in (str(replies), *(path.read_text() for path in folder.iterdir()))):
        broken.append("the key was kept or said")
    if seen != {f"Bearer {KEY}"}:
        broken.append(f"the key went out as {seen}")
    if (
        time.monotonic() - begun
        > 20 + len(bad) * options["timeout"] * (1 + options["retries"]) * 2 / options["workers"]
    ):
        broken.append(f"it took {time.monotonic() - begun:.0f} s")
    return Found(f"{len(bad)} faults, {len(odd)} oddities, {options}", len(names), broken)


def _ask(
    folder: Path, names: list[str], plays: dict[str, Any], options: dict[str, Any]
) -> tuple[dict, set[str], str]:
    """The replies by name, the keys that the server saw, and what ended the call as a whole."""
    requests = [{"messages": [{"role": "user", "content": name}], "max_tokens": 10} for name in names]
    ours = {"no_proxy": "127.0.0.1,localhost", "A_KEY": KEY, "OPENAI_API_KEY": "another-secret"}
    with (
        patch.dict("os.environ", ours),
        patch.object(client, "LONGEST_WAIT", 0.05),
        playing(plays) as (url, heads),
    ):
        server = ChatServer(url, "m", folder, key_variable="A_KEY", backoff=0.01, **options)
        try:
            replies = dict(zip(names, server.ask(requests, show=lambda line: None), strict=True))
        except Exception as error:
            return {}, set(), f"{type(error).__name__}: {error:.200}"
    fields = [line.partition(": ") for lines in heads for line in lines]
    return replies, {value for name, _, value in fields if name.lower() == "authorization"}, ""
