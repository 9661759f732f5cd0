"""LaTeX answers of known truth: written otherwise and right, or another thing that looks alike. And bombs."""

import json
import os
import random
import re
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

from lib.verify import TIME_LIMIT_S, is_correct

from .campaign import Found

PAIRS = 100
Pair = tuple[str, str, bool]  # answer, reference, is it right
# Written down for this file, and not drawn from data/latex.yaml, which they are to test.
_UNITS = (
    "m km cm mm kg g s ms h N J W MW mW Pa V A Hz kHz mL ft in lb oz mi mph meters feet inches miles "
    "yards hours minutes seconds days weeks years dollars cents pounds ounces gallons liters grams "
    "degrees students apples people"
)
UNITS = _UNITS.split()
COMPOUND = ("square feet", "cubic meters", "miles per hour", "km/h", "m/s", "square units", "sq ft")
# Numbers, fractions, operations, hedges, constants and variables: no units, whatever they are set in.
_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fifteen nineteen "
    "twenty thirty forty fifty sixty ninety hundred hundreds thousand million millions billion trillion "
    "quadrillion quintillion googol dozen dozens score gross pair couple triple lakh crore myriad half "
    "halves third thirds quarter fourth fifths sixth tenths hundredth thousandths double twice thrice k "
    "M B bn mil squared cubed factorial negative minus plus times over root sqrt log sin pi tau phi e i "
    "x n inf infinity nan not never no wrong false or and about around roughly approximately almost "
    "nearly exactly maybe perhaps modulo mod base binary hex octal radix remainder plusminus prime "
    "inverse reciprocal conjugate transpose approx circa per each another more less than bis recurring "
    "repeating"
)
WORDS = _WORDS.split()
BASES = (
    "2",
    "3",
    "5",
    "7",
    "8",
    "9",
    "12",
    "16",
    "b",
    "n",
    "five",
    "seven",
    "(5)",
    "(7)",
    r"\text{five}",
    "ten",
)
# Shapes of references in MATH, where the real ones are not at hand.
SHAPES = (
    r"\left( 3, \frac{\pi}{2} \right)", "p - q", r"\text{Evelyn}", r"90^\circ", r"3\sqrt{13}", "6 - 5i",
    "x=5", "52_8", r"-\frac{\pi}{6}", r"\cot x", r"1 \pm \sqrt{19}", "2k+2",
    r"\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix}", "(3,4]", r"\frac43", "4210_{5}",
    "5x - 7y + 11z + 4 = 0", r"\frac{270}7\text{ degrees}", r"(2,\infty)", r"11,\! 111,\! 100",
    r"\text{(C)}", r"\$32,\!348", r"864 \mbox{ inches}^2", r"1\frac{4}{5}", r"5.4 \text{ cents}",
    r"(0,9) \cup (9,36)", r"x \in [-2,7]", r"\{1\pm\sqrt{5},-2\}", "y = 2x + 3", r"\$18.90",
    r"15\mbox{ cm}^2", "-4,3", ".35625", "4343_6",
)  # fmt: skip
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
    value, known, given = written_plainly(_number(rng)), rng.choice(UNITS), rng.choice(UNITS)
    boxes = (
        r"\text{{ {} }}",
        r"\text{{ {}}}",
        r"\mathrm{{{}}}",
        r"\mbox{{ {}}}",
        r"\,\text{{{}}}",
        r"{{\rm {}}}",
    )
    answer, gold = (
        value + rng.choice((*boxes, r"\rm {}", " {}", "~{}")).format(one) for one in (given, known)
    )
    alike = given == known  # a letter without a box is a variable to one and a unit to the other
    boxed = value + rng.choice(boxes).format(rng.choice((given, *COMPOUND)))
    return rng.choice([(answer, gold, alike), (answer, gold, alike), (boxed, value, True)])


def word(rng: random.Random) -> Pair:
    value = written_plainly(_number(rng))
    box = rng.choice(
        (r"\text{{ {}}}", r"\mathrm{{{}}}", r"\textbf{{ {}}}", r"\mathit{{ {}}}", r"\operatorname{{{}}}")
    )
    box = rng.choice((box, " {}", "~{}", r"\rm {}", r"{{\rm {}}}", r"\text {}", r"\, {}", r"\textit{{{}}}"))
    word = rng.choice(WORDS)
    return value + box.format(word), value, value == "1" and word in ("1", "squared", "cubed")


def digits_base(rng: random.Random) -> Pair:
    digits, base, other = rng.randint(10, 333), rng.choice(BASES), rng.choice(BASES)
    answer, gold = (
        rng.choice(("{}_{{{}}}", "{{{}}}_{{{}}}", "({})_{{{}}}", "{}_ {{ {} }}")).format(digits, one)
        for one in (other, base)
    )
    plain = f"{digits}_{{{base}}}"
    alike = base.strip("()") == other.strip("()")
    return rng.choice([(plain, plain, True)] if alike else [(plain, plain, True), (answer, gold, False)])


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


def related(rng: random.Random) -> Pair:
    """An equation: a name on its left stands for what is on its right, an operation for another thing."""
    value = rng.randint(2, 999_999)
    letter = rng.choice("abcxyzntkuvw")
    names = (
        "{}",
        "{}_1",
        "{}_{{12}}",
        "f({})",
        "f(3)",
        "g_2({})",
        r"\theta",
        "AB",
        r"\angle ABC",
        "h^{{-1}}({})",
    )
    others = (
        "2{}",
        "{}+1",
        "-{}",
        "|{}|",
        r"\sqrt{{{}}}",
        r"\sin {}",
        r"\sin({})",
        "{0}q",
        "{0}^2",
        r"\log {}",
    )
    others += (
        r"\frac{{{}}}{{2}}",
        r"\frac{{dy}}{{d{}}}",
        "{}/3",
        "2^{}",
        "f'({})",
        "3f({})",
        "f({})^2",
        "{0}_1{0}_2",
    )
    others += (r"\left|{}\right|", r"{} \cdot 3", "{0}({0}+1)", "(x+1){}", r"\pi {}", "{}!", "q {}", "1 - {}")
    named = rng.random() < 0.5
    left = rng.choice(names if named else others).format(letter)
    sign, digits = (
        rng.choice(("=", " = ")),
        rng.choice((str(value), f"{value:,}", f"{value:,}".replace(",", r"\,"))),
    )
    return rng.choice((f"{left}{sign}{digits}", f"${left}{sign}{digits}$")), str(value), named


def paired(rng: random.Random) -> Pair:
    """Numbers that are named, in the order of their names or not; and another function's value."""
    one, two = rng.sample(range(-20, 20), 2)
    first, second = sorted(rng.sample("abcuvxyz", 2))
    names = rng.choice((f"({first},{second})=({one},{two})", f"{first}={one}, {second}={two}"))
    turned = rng.choice((f"({second},{first})=({one},{two})", f"{second}={one}, {first}={two}"))
    f, g = rng.sample(("f(2)", "g(2)", "f(3)", "h_1(2)", "f^{-1}(2)"), 2)
    ways = [(names, f"({one},{two})", True), (turned, f"({one},{two})", False)]
    ways += [(f"{f}={one}", f"{f} = {one}", True), (f"{g}={one}", f"{f}={one}", False)]
    return rng.choice(ways)


def grouped(rng: random.Random) -> Pair:
    """Sets, tuples and intervals: fences and, in a tuple, the order decide."""
    one, two = rng.sample(range(-20, 20), 2)
    fences = [(r"\{", r"\}"), ("(", ")"), ("[", "]"), ("(", "]"), ("[", ")")]
    first, second = rng.choice(fences), rng.choice(fences)
    swapped = rng.random() < 0.3
    inside = f"{two}, {one}" if swapped else f"{one}, {two}"
    right = first == second and (not swapped or first[0] == r"\{")
    return f"{first[0]}{inside}{first[1]}", f"{second[0]}{one},{two}{second[1]}", right


def nested(rng: random.Random) -> Pair:
    """Sets, tuples and lists of pairs, with and without a name."""
    a, b, c, d = rng.sample(range(1, 30), 4)
    flat = {"tuple": f"({a},{b})", "set": rf"\{{{a},{b}\}}", "interval": f"[{a},{b}]", "half": f"({a},{b}]"}
    pairs = f"({a},{b}),({c},{d})"
    deep = {"tuple": f"({pairs})", "set": rf"\{{{pairs}\}}", "interval": f"[{pairs}]"}
    kinds = rng.choice((flat, deep))
    one, other = rng.choice(list(kinds)), rng.choice(list(kinds))
    names = {
        "tuple": ("", "(x,y)=" if kinds is flat else ""),
        "set": ("", r"x\in", "S="),
        "interval": ("", r"x \in "),
    }
    name = rng.choice(names.get(one, ("",)))
    return name + kinds[one], kinds[other], one == other


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


def references() -> tuple[str, ...]:
    """The answers of MATH-500 where they are at hand."""
    folder = os.environ.get("REAL_DATA_DIR")
    if not folder:
        return SHAPES
    return tuple(
        row["answer"] for row in json.loads((Path(folder) / "math500.json").read_text(encoding="utf-8"))
    )


def changed(rng: random.Random) -> Pair:
    """A real reference with one thing changed, which changes what it says."""
    gold = rng.choice(references())
    if re.search(r"(?<![\d.])[012]$", gold):  # 1! = 1 and 2! = 2, and 0 times anything is 0
        return gold, gold, True
    word, shift = rng.choice(WORDS), rng.randint(1, 9)
    digits = [match.start() for match in re.finditer(r"\d", gold)]
    place = rng.choice(digits) if digits else -1
    ways = [
        rf"{gold} {word}",
        rf"{gold}\text{{ {word}}}",
        rf"{gold}\mathrm{{{word}}}",
        f"{gold} + 1",
        f"{gold}'",
    ]
    ways += [
        rf"{gold} \cdot 3",
        rf"\approx {gold}",
        rf"{gold}\ldots",
        f"{gold}!",
        f"{gold}_3",
        rf"{gold} \pmod 7",
    ]
    ways += [
        rf"\neg {gold}",
        f"{gold}, 997",
        f"{gold} or 997",
        f"({gold}, 997)",
        rf"{gold}^\prime",
        f"{gold};997",
    ]
    ways += [
        rf"\{{{gold}, 997\}}",
        rf"997 = {gold}",
        rf"{gold} = 997",
        rf"\overline{{{gold}}}",
        rf"{gold}\text{{?}}",
    ]
    ways += [
        gold.replace("(", "[", 1),
        gold.replace("]", ")", 1),
        gold.replace(r"\{", "(").replace(r"\}", ")"),
    ]
    ways += [
        gold.replace(r"\circ", r"\prime"),
        gold.replace("i", "j"),
        re.sub(r"_\{?(\d)\}?", r"_{\g<1>1}", gold),
    ]
    ways += [
        re.sub(r"\\(text|mbox)\{.*?\}", rf"\\text{{{word}}}", gold),
        gold.replace(r"\pi", "p"),
        f"f' = {gold}",
    ]
    if digits:
        digit = str((int(gold[place]) + shift) % 10)
        ways += [gold[:place] + digit + gold[place + 1 :]] * 8
        ways.append(gold[:place] + f"{gold[place]}{digit}" + gold[place + 1 :])
    if unit := re.search(r"\^\\circ|\\(?:text|mbox)\{ [^}]*\}|\\\$", gold):
        ways += [
            gold.replace(unit[0], "") + rf"\text{{ {other}}}" for other in ("km", "hours", "students", "kg")
        ]
    answer = rng.choice(ways)
    return answer, gold, answer == gold


def rewritten(rng: random.Random) -> Pair:
    """A real reference as it may also be set."""
    gold = rng.choice(references())
    ways = [
        gold,
        gold.replace(" ", ""),
        gold.replace(r"\frac", r"\dfrac"),
        rf"{{{gold}}}" if gold.isdigit() else gold,
    ]
    ways += [gold.replace(r"\left", "").replace(r"\right", ""), gold.replace(r"\mbox", r"\text"), f"{gold}."]
    ways += [
        gold.replace("(", r"\left(").replace(")", r"\right)"),
        gold.replace("-", "- "),
        rf"\displaystyle {gold}",
    ]
    text = rng.choice([way for way in ways if r"\left\left" not in way and r"\right\right" not in way])
    return rng.choice(("{}", "${}$", r"\boxed{{{}}}", r"\({}\)", " {} ")).format(text), gold, True


KINDS: tuple[Callable[[random.Random], Pair], ...] = (
    equal, another, unit, word, digits_base, marked, related, paired, grouped, nested, more, rewritten,
    changed, changed, changed,
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
