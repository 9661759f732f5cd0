"""LaTeX answers of known truth: written otherwise and right, or another thing that looks alike. And bombs."""

import random
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

from lib.verify import TIME_LIMIT_S, is_correct

from .campaign import Found

PAIRS = 100
Pair = tuple[str, str, bool]  # answer, reference, is it right
UNITS = ("m", "km", "cm", "mm", "kg", "g", "s", "ms", "h", "mph", "N", "J", "W", "MW", "mW", "Pa", "V", "A")
COUNTED = ("dollars", "cents", "degrees", "feet", "inches", "hours", "minutes", "apples", "students")
WORDS = ("million", "billion", "thousand", "hundred", "dozen", "half", "or", "and", "not", "twice")
BOMBS = (
    "9^{{9^{{{0}}}}}",
    "{0}00000!",
    r"\sum_{{k=1}}^{{{0}0000000}} \frac{{1}}{{k^2}}",
    r"\binom{{{0}0000000}}{{{0}000000}}",
    r"\prod_{{k=1}}^{{{0}000000}} k",
    r"{0}^{{{0}^{{{0}^{0}}}}}",
    r"\int_0^{{{0}}} e^{{x^x}} \sin(x^x) dx",
    "(" * 300 + "{0}" + ")" * 300,
    r"\frac{{" * 200 + "{0}" + "}}{{2}}" * 200,
    r"\left(x+y+z+w\right)^{{{0}00}}",
)


# ---- one number, written in many ways ----------------------------------------------------------------


def _number(rng: random.Random) -> Fraction:
    return Fraction(rng.choice((1, -1)) * rng.randint(1, 400), rng.choice((1, 1, 1, 2, 4, 5, 8, 3, 7)))


def written(value: Fraction, rng: random.Random) -> str:
    """A value as LaTeX: as a fraction, a decimal where that is exact, a sum, a product, a power."""
    top, bottom = value.numerator, value.denominator
    ways = [rf"\frac{{{top}}}{{{bottom}}}", rf"\dfrac{{{3 * top}}}{{{3 * bottom}}}", f"{top}/{bottom}"]
    ways.append(rf"{written_plainly(value - 1)} + 1")
    ways.append(rf"2 \cdot \frac{{{top}}}{{{2 * bottom}}}" if top > 0 else rf"-\frac{{{-top}}}{{{bottom}}}")
    if bottom == 1:
        ways += [str(top), rf"\frac{{{2 * top}}}{{2}}"]
    if 10**4 % bottom == 0:
        ways.append(f"{float(value):g}" if abs(value) < 10**5 else str(float(value)))
    return rng.choice(ways)


def written_plainly(value: Fraction) -> str:
    """A whole number, or one fraction."""
    top, bottom = value.numerator, value.denominator
    sign = "-" if top < 0 else ""
    return str(top) if bottom == 1 else rf"{sign}\frac{{{abs(top)}}}{{{bottom}}}"


# ---- kinds of pairs ----------------------------------------------------------------------------------


def equal(rng: random.Random) -> Pair:
    value = _number(rng)
    return wrapped(written(value, rng), rng), written(value, rng), True


def another(rng: random.Random) -> Pair:
    value, other = _number(rng), _number(rng)
    return wrapped(written(other, rng), rng), written(value, rng), value == other


def unit(rng: random.Random) -> Pair:
    """The unit of the reference, another one, or one where the reference has none."""
    value, known, given = (
        written_plainly(_number(rng)),
        rng.choice(UNITS + COUNTED),
        rng.choice(UNITS + COUNTED),
    )
    box = rng.choice((r"\text{{ {} }}", r"\text{{ {}}}", r"\mathrm{{{}}}", r"\mbox{{ {}}}", r"\,\text{{{}}}"))
    answer = value + box.format(given)
    return rng.choice([(answer, value + rf"\text{{ {known}}}", given == known), (answer, value, True)])


def word(rng: random.Random) -> Pair:
    value = written_plainly(_number(rng))
    box = rng.choice(
        (r"\text{{ {}}}", r"\mathrm{{{}}}", r"\textbf{{ {}}}", r"\mathit{{ {}}}", r"\operatorname{{{}}}")
    )
    return value + box.format(rng.choice(WORDS)), value, False


def digits_base(rng: random.Random) -> Pair:
    digits, base, other = rng.randint(10, 333), rng.randint(5, 9), rng.randint(5, 16)
    given = rng.choice((f"{digits}_{other}", f"{digits}_{{{other}}}"))
    return given, f"{digits}_{{{base}}}", other == base


def marked(rng: random.Random) -> Pair:
    """Something before or behind a number makes it another thing."""
    value = rng.randint(2, 99)
    marks = (
        r"x\approx {}",
        r"\approx {}",
        r"x\equiv {}",
        "{}'",
        r"{}^\prime",
        r"\pm {}",
        "{}i",
        r"{}\pi",
        "{}x",
        "-{}",
        "{}!",
    )
    marks += (
        r"x > {}",
        r"x \ge {}",
        r"\ge {}",
        "< {}",
        r"x \ne {}",
        r"\sqrt{{{}}}",
        r"{}\%\%",
        r"\frac{{1}}{{{}}}",
    )
    marks += (
        r"{} \pm 1",
        r"{}\ldots 1",
        "{}:30",
        r"{}^\circ\text{{ or so}}",
        r"\log {}",
        "f'(x) = {}",
        r"{}\text{{ or }}3",
    )
    return rng.choice(marks).format(value), str(value), False


def grouped(rng: random.Random) -> Pair:
    """Sets, tuples and intervals: fences and, in a tuple, the order decide."""
    one, two = rng.sample(range(-20, 20), 2)
    fences = [(r"\{", r"\}"), ("(", ")"), ("[", "]"), ("(", "]"), ("[", ")")]
    first, second = rng.choice(fences), rng.choice(fences)
    swapped = rng.random() < 0.3
    inside = f"{two}, {one}" if swapped else f"{one}, {two}"
    right = first == second and (not swapped or first[0] == r"\{")
    return f"{first[0]}{inside}{first[1]}", f"{second[0]}{one},{two}{second[1]}", right


def more(rng: random.Random) -> Pair:
    """A right answer with something added."""
    value = written_plainly(_number(rng))
    added = (
        " or 3",
        ", 3",
        r"\text{, not 7}",
        " = 3",
        r" \boxed{7}",
        r"\quad 8",
        " and 3",
        r"\cup \{3\}",
        r"\text{ maybe}3",
    )
    return value + rng.choice(added), value, False


KINDS: tuple[Callable[[random.Random], Pair], ...] = (
    equal, another, unit, word, digits_base, marked, grouped, more,
)  # fmt: skip


def wrapped(text: str, rng: random.Random) -> str:
    """As models wrap what they found."""
    return rng.choice(("{}", "${}$", r"\boxed{{{}}}", r"$\boxed{{{}}}$", r"\({}\)", "x = {}", " {} ")).format(
        text
    )


# ---- a case ------------------------------------------------------------------------------------------


def case(rng: random.Random, folder: Path, number: int) -> Found:
    """A hundred pairs of known truth, and a bomb."""
    pairs = {(kind.__name__, *kind(rng)) for kind in rng.choices(KINDS, k=PAIRS)}
    broken = [
        f"{kind}: {answer} for {gold} is taken for {'wrong' if right else 'right'}"
        for kind, answer, gold, right in sorted(pairs)
        if is_correct(answer, gold, "latex") is not right
    ]
    bomb, begun = rng.choice(BOMBS).format(rng.randint(2, 9)), time.monotonic()
    is_correct(bomb, "5", "latex")
    if (seconds := time.monotonic() - begun) > 15 * TIME_LIMIT_S:  # of wall time, on a busy machine
        broken.append(f"{bomb:.40} took {seconds:.1f} s")
    return Found(f"{len(pairs)} pairs, and {bomb:.30} in {seconds:.1f} s", len(pairs) + 1, broken)
