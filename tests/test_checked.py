from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal

import pytest

from lib.checked import Range, check_fields, faults, identity
from lib.formats import ReasoningFormat


@dataclass(frozen=True)
class Config:
    weights: Literal["full", "lora", "qlora"] = "qlora"
    batches: Annotated[int, Range(1)] = 80
    learning_rate: Annotated[float, Range(above=0, high=0.1)] = 4e-4
    depths: list[Annotated[int, Range(1, 12)]] = field(default_factory=lambda: [1, 2])

    def __post_init__(self) -> None:
        check_fields(self)


GOOD = [
    (bool, True),
    (int, -3),
    (float, 3),
    (float, 0.5),
    (str, ""),
    (type(None), None),
    (int | None, None),
    (int | None, 4),
    (Literal["a", 1], 1),
    (list[int], []),
    (tuple[int, ...], (1, 2)),
    (Mapping[str, float], {"a": 1.0}),
    (dict[str, Any], {"a": None}),
    (ReasoningFormat, ReasoningFormat.CODE),
    (Callable[[int], int], len),
    (Annotated[float, Range(0, 1)], 1),
    (Annotated[int, Range(2, below=4)] | None, 3),
]


@pytest.mark.parametrize(("annotation", "value"), GOOD)
def test_what_an_annotation_allows_passes(annotation, value):
    assert not list(faults("x", annotation, value))


BAD = [
    (bool, 1, "x takes True or False, got 1"),
    (int, True, "x takes a whole number, got True"),
    (int, 1.0, "x takes a whole number, got 1.0"),
    (float, True, "x takes a finite number, got True"),
    (float, float("nan"), "x takes a finite number, got nan"),
    (float, float("inf"), "x takes a finite number, got inf"),
    (float, "1e-5", "x takes a finite number, got '1e-5'"),
    (str, None, "x takes text, got None"),
    (int | None, "a", "x takes a whole number or None, got 'a'"),
    (Literal["full", "lora"], "LORA", "x takes 'full' or 'lora', got 'LORA'; did you mean 'lora'?"),
    (Literal[1, 2], True, "x takes 1 or 2, got True"),
    (Literal["a", "b"] | None, "c", "x takes 'a' or 'b' or None, got 'c'"),
    (list[int], 3, "x takes a list of (a whole number), got 3"),
    (list[int], [1, "a"], "x[1] takes a whole number, got 'a'"),
    (tuple[int, ...], 1, "x takes a tuple of (a whole number, ...), got 1"),
    (tuple[int, ...], (1, "a"), "x[1] takes a whole number, got 'a'"),
    (Mapping[str, float], {"a": "b"}, "x['a'] takes a finite number, got 'b'"),
    (Mapping[str, float], {1: 0.0}, "x (key 1) takes text, got 1"),
    (ReasoningFormat, "cod", "did you mean 'code'?"),
    (Annotated[float, Range(0, 1)], 1.5, "x takes a finite number from 0 up to 1, got 1.5"),
    (Annotated[float, Range(above=0, below=1)], 0.0, "x takes a finite number above 0 below 1, got 0.0"),
    (Annotated[int, Range(1)] | None, 0, "x takes a whole number from 1 or None, got 0"),
]


@pytest.mark.parametrize(("annotation", "value", "message"), BAD)
def test_what_it_does_not_allow_is_named_with_what_it_does(annotation, value, message):
    assert message in "".join(faults("x", annotation, value))


def test_a_configuration_reports_all_its_faults_together():
    Config()
    with pytest.raises(ValueError) as error:
        Config(weights="QLORA", batches=0, learning_rate=1000.0, depths=[1, 13])
    assert str(error.value).splitlines() == [
        "Config.weights takes 'full', 'lora' or 'qlora', got 'QLORA'; did you mean 'qlora'?",
        "Config.batches takes a whole number from 1, got 0",
        "Config.learning_rate takes a finite number above 0 up to 0.1, got 1000.0",
        "Config.depths[1] takes a whole number from 1 up to 12, got 13",
    ]


# ---- what a function is -----------------------------------------------------------------------------

REWARD = """
def reward(completion_ids, **others):
    return [score(ids) for ids in completion_ids]
"""
HELPER = """
def score(ids):
    return half(ids) + LEAST

def half(ids):
    return score(ids[1:]) / 2 if ids else 0.0
"""
WHOLE = "LEAST = 0.1" + HELPER + REWARD


def made(folder, text, name="reward"):
    """The function of that name in a module of its own, as a notebook's cell makes it."""
    path = folder / f"cell_{len(list(folder.iterdir()))}.py"
    path.write_text(text)
    space = {"__name__": "__main__"}
    exec(compile(text, str(path), "exec"), space)
    return space[name]


def test_what_a_rewards_helpers_are_is_a_part_of_what_it_is(tmp_path):
    """A function that it calls, and what that one calls and reads, could change unseen."""
    known = partial(made, tmp_path)
    before = identity(known(WHOLE))
    assert identity(known(WHOLE)) == before
    for old, new in (("/ 2", "/ 3"), ("+ LEAST", "- LEAST"), ("LEAST = 0.1", "LEAST = 0.2")):
        assert identity(known(WHOLE.replace(old, new))) != before, old


@pytest.mark.parametrize(
    ("value", "other"),
    [
        ("(1, 2)", "(1, 3)"),
        ("{'a', 'b'}", "{'a', 'c'}"),
        ("re.compile('a')", "re.compile('b')"),
        ("math.sqrt", "math.exp"),
        ("torch.relu", "torch.tanh"),
        ("numpy.mean", "numpy.median"),
        ("float('nan')", "float('inf')"),
        ("is_correct", "last_boxed"),
        ("math", "re"),
        ("{'f': lambda x: x + 1}", "{'f': lambda x: x + 2}"),
        ("functools.cache(lambda x: x + 1)", "functools.cache(lambda x: x + 2)"),
    ],
)
def test_globals_of_a_reward_are_told_apart(tmp_path, value, other):
    known = partial(made, tmp_path)
    text = "import functools, math, re\nimport numpy, torch\n"
    text += "from lib.verify import is_correct as is_correct, last_boxed\n"
    text += f"USED = {value}\ndef reward(ids):\n    return [USED for _ in ids]\n"
    assert identity(known(text)) == identity(known(text)) != identity(known(text.replace(value, other)))


@pytest.mark.parametrize(
    "value", ["torch.ones(2)", "{(1, 2): 3}", "object()", "[1].count", "torch.nn.GELU()"]
)
def test_a_global_that_nothing_describes_is_refused_by_its_name(tmp_path, value):
    text = f"import torch\nUSED = {value}\ndef score(x):\n    return USED\n" + REWARD
    for name in ("score", "reward"):
        with pytest.raises(ValueError, match=r"what its global 'USED' is .*give it an attribute `setting`"):
            identity(made(tmp_path, text, name))
    named = made(tmp_path, text)
    named.__globals__["score"].setting = "of May"
    assert identity(named)[-1] == {"score": "of May"}


def test_a_reward_of_plain_values_is_what_it_was_before(tmp_path):
    """What was trained with it is still found."""
    text = "import math\nLEAST = 0.1\ndef reward(ids, most=1):\n    return max(LEAST, math.sqrt(len(ids)))\n"
    source = text.split("0.1\n")[1]
    assert identity(made(tmp_path, text)) == [source, [1], None, {}, {"LEAST": 0.1}]
