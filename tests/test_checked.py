from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from lib.checked import Range, check_fields, faults
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
