"""Your turn in notebook 00: reach, the cheapest right format, next token, decoding loop, interval."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch

from lib import dial
from lib.engines.base import Request, Sampling
from lib.engines.decode import decode, pick
from lib.formats import ReasoningFormat
from lib.measure.intervals import Z95, wilson_interval
from lib.policies import load_policy
from lib.studies.exercises.core import Cases, Check
from lib.studies.exercises.dial_longer import easy_price as easy_price
from lib.studies.exercises.dial_longer import first_wrong as first_wrong
from lib.studies.exercises.dial_longer import third_digit as third_digit

DIRECT, SHORT_COT, CODE, LONG_COT = ReasoningFormat

# ---- how far each format reaches -----------------------------------------------------------------


def _ends(format: str, *, code: int = 3, more: int = 1, fused: int = 2, deepest: int = dial.MAX_DEPTH) -> int:
    written = {DIRECT: 0, SHORT_COT: len(dial.JOTTED_AFTER), CODE: code, LONG_COT: dial.MAX_DEPTH}
    return min(deepest, fused * (written[ReasoningFormat(format)] + more))


reaches = Check(
    "reaches",
    dial.reach,
    lambda: [(format,) for format in ReasoningFormat],
    {
        "The last comment of a program is the answer, so four statements write three digits before it.": (
            lambda format: _ends(format, code=dial.MAX_STATEMENTS)
        ),
        "b digits cut the chain into b + 1 pieces, not into b.": lambda format: _ends(format, more=0),
        "A piece may be as long as one pass can fuse, so the pieces are multiplied by h = 2.": (
            lambda format: _ends(format, fused=1)
        ),
        "The formula has no end, but the questions have: none is deeper than MAX_DEPTH.": (
            lambda format: _ends(format, deepest=99)
        ),
        "Each of the b + 1 pieces may be h long: h (b + 1), not h b + 1.": (
            lambda format: min(dial.MAX_DEPTH, _ends(format, more=0, deepest=99) + 1)
        ),
    },
)

# ---- the cheapest right format -------------------------------------------------------------------


def _reaching(depth: int) -> list[ReasoningFormat]:
    return [format for format in ReasoningFormat if depth <= dial.reach(format)]


cheapest = Check(
    "cheapest",
    dial.oracle_format,
    lambda: [(depth,) for depth in (1, 2, 3, 6, 7, 8, 9, 12, 13)],
    {
        "This looks at the price alone. First leave out the formats that do not reach this depth.": (
            lambda depth: DIRECT
        ),
        "A format is right at the last depth that it reaches, too: n <= reach, not n < reach.": (
            lambda depth: next((f for f in ReasoningFormat if depth < dial.reach(f)), None)
        ),
        "Beyond the reach of all formats nothing is right: give None there.": (
            lambda depth: next(iter(_reaching(depth)), LONG_COT)
        ),
        "This takes the format that reaches deepest. Equation (3) asks for the cheapest that reaches.": (
            lambda depth: LONG_COT if _reaching(depth) else None
        ),
        "This gives the number of tokens. Equation (3) is an argmin: give the format.": (
            lambda depth: min((dial.token_cost(f, depth) for f in _reaching(depth)), default=None)
        ),
        "Beyond the reach of all formats there is nothing to take the `min` of: it needs a default.": (
            lambda depth: min(_reaching(depth), key=lambda f: dial.token_cost(f, depth))
        ),
        "These are all formats that reach. Equation (3) takes the cheapest of them.": _reaching,
    },
)

# ---- the next token ------------------------------------------------------------------------------


def _draw(probabilities: torch.Tensor, draw: float, later: int = 0) -> int:
    place = int((probabilities.double().cumsum(0) <= draw).sum()) + later
    return max(0, min(place, len(probabilities) - 1))


def _picked(logits: torch.Tensor, temperature: float, draw: float) -> int:
    draws = torch.tensor([draw], dtype=torch.float64) if temperature else None
    return int(pick(logits[None], Sampling(temperature), draws)[0])


def _logits() -> Cases:
    logits = [1.0, -0.5, 2.0, 0.3]
    asked = [(0.0, 0.95), (1.0, 0.05), (1.0, 0.31), (1.0, 0.95), (0.25, 0.05), (4.0, 0.05), (4.0, 0.5)]
    return [(torch.tensor(logits), temperature, draw) for temperature, draw in asked]


next_token = Check(
    "next_token",
    _picked,
    _logits,
    {
        "The draw is not used: this is greedy at every temperature.": lambda logits, t, draw: int(
            logits.argmax()
        ),
        "Temperature 0 means greedy. This draws there as it does at 1.": (
            lambda logits, t, draw: _draw((logits / (t or 1)).softmax(0), draw)
        ),
        "At temperature 0 this divides by zero. Take the most probable token there.": (
            lambda logits, t, draw: _draw((logits / t).softmax(0), draw)
        ),
        "Logits are divided by the temperature. Multiplied by it, a high one makes the choice sharper.": (
            lambda logits, t, draw: _draw((logits * t).softmax(0), draw) if t else int(logits.argmax())
        ),
        "The temperature has no effect here. Divide the logits by it, before the softmax and not after.": (
            lambda logits, t, draw: _draw(logits.softmax(0), draw) if t else int(logits.argmax())
        ),
        "One place too early: the token is the first one whose cumulative sum lies above the draw.": (
            lambda logits, t, draw: (
                _draw((logits / t).softmax(0), draw, later=-1) if t else int(logits.argmax())
            )
        ),
        "Probabilities are divided by the temperature, and no longer sum to 1. Divide the logits.": (
            lambda logits, t, draw: (
                int((logits.softmax(0) / t).double().cumsum(0).le(draw).sum()) if t else int(logits.argmax())
            )
        ),
        "One place too late: count the cumulative sums at or below the draw, and nothing more.": (
            lambda logits, t, draw: (
                int(((logits / t).softmax(0).cumsum(0) <= draw).sum()) + 1 if t else int(logits.argmax())
            )
        ),
        "The parts lie side by side in the order of ids, not of size.": (
            lambda logits, t, draw: int(
                logits.argsort(descending=True)[
                    _draw((logits / t).softmax(0).sort(descending=True).values, draw) if t else 0
                ]
            )
        ),
    },
)

# ---- the decoding loop ---------------------------------------------------------------------------


@cache
def _base() -> tuple[Any, Any]:
    return load_policy("dial-base")


def _prompts() -> Cases:
    model, tokenizer = _base()
    prompt = dial.parse_question("The red dial shows 3. Turn it +4 x7 then +1 x9. Now?").prompt
    asked = [("It shows", 8), ("Jot", 16), ("Okay,", 12)]
    return [
        (model, tokenizer(f"{prompt} {begun}").input_ids, tokenizer.eos_token_id, room)
        for begun, room in asked
    ]


def _decoded(model: Any, ids: list[int], end: int, room: int) -> tuple[int, ...]:
    return decode(model, [Request(tuple(ids), max_new_tokens=room)], Sampling(), {end})[0].ids


@torch.inference_mode()
def _loop(
    model: Any, ids: list[int], end: int, room: int, *, memory: int = 0, place: int = -1, ends: bool = True
) -> list[int]:
    written: list[int] = []
    while len(written) < room and not (ends and written and written[-1] == end):
        read = [*ids, *written][-memory:]
        written.append(int(model(torch.tensor([read], device=model.device)).logits[0, place].argmax()))
    return written


respond = Check(
    "respond",
    _decoded,
    _prompts,
    {
        "It does not stop at the end token, and writes on until there is no more room.": (
            lambda model, ids, end, room: _loop(model, ids, end, room, ends=False)
        ),
        "The end token belongs to the response: it is written, counted and, in SFT, taught.": (
            lambda model, ids, end, room: [i for i in _loop(model, ids, end, room) if i != end]
        ),
        "The prompt is not part of the response: give the new ids only.": (
            lambda model, ids, end, room: [*ids, *_loop(model, ids, end, room)]
        ),
        "The model must read the prompt and all that was written, not the last token alone.": (
            lambda model, ids, end, room: _loop(model, ids, end, room, memory=1)
        ),
        "These are the logits after the first token. The next one is predicted at the last place.": (
            lambda model, ids, end, room: _loop(model, ids, end, room, place=0)
        ),
        "One token too many: `room` is the largest number of new tokens.": (
            lambda model, ids, end, room: _loop(model, ids, end, room + 1)
        ),
        "Nothing is written: `room` counts the new tokens, and the prompt takes none of it.": (
            lambda model, ids, end, room: _loop(model, ids, end, room - len(ids))
        ),
        "It stops after one token. Is the `return` inside the loop?": (
            lambda model, ids, end, room: _loop(model, ids, end, min(room, 1))
        ),
    },
)

# ---- an interval ---------------------------------------------------------------------------------


def _wilson(
    right: int,
    count: int,
    *,
    z: float = Z95,
    shrunk: bool = True,
    centred: bool = True,
    pulled: int = 1,
    wider: int = 1,
) -> tuple[float, float]:
    rate, scale = right / count, 1 + z**2 / count if shrunk else 1.0
    centre = (rate + pulled * z**2 / (2 * count)) / scale if centred else rate
    half = z * math.sqrt(rate * (1 - rate) / count + wider * z**2 / (4 * count**2)) / scale
    return centre - half, centre + half


def _middle_and_half(right: int, count: int) -> tuple[float, float]:
    low, high = _wilson(right, count)
    return (low + high) / 2, (high - low) / 2


def _wald(right: int, count: int) -> tuple[float, float]:
    rate = right / count
    half = Z95 * math.sqrt(rate * (1 - rate) / count)
    return rate - half, rate + half


interval = Check(
    "interval",
    wilson_interval,
    lambda: [(0, 20), (20, 20), (7, 40), (1, 3), (184, 200)],
    {
        "That is the normal interval: at 0 and 1 it has no width, and near them it leaves [0, 1].": (_wald),
        "The middle of Wilson's interval is not the rate: it is pulled towards one half.": (
            lambda right, count: _wilson(right, count, centred=False)
        ),
        "Divide middle and half width by 1 + z^2 / n.": lambda right, count: _wilson(
            right, count, shrunk=False
        ),
        "z = 1.645 makes an interval of 90 %. For 95 % it is 1.96.": (
            lambda right, count: _wilson(right, count, z=1.645)
        ),
        "These are numbers of right answers. The interval is of the rate: divide by n.": (
            lambda right, count: tuple(count * end for end in _wilson(right, count))
        ),
        "The middle lacks z^2 / 2n.": lambda right, count: _wilson(right, count, pulled=0),
        "The half width lacks z^2 / 4n^2 under the root: without it, it is 0 at 0 and 1.": (
            lambda right, count: _wilson(right, count, wider=0)
        ),
        "These are middle and half width. Give both ends.": _middle_and_half,
    },
)
