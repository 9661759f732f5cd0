"""Every check of "Your turn": the right function passes, each usual mistake gets its own hint."""

import ast
import re
import time
from importlib import import_module
from itertools import pairwise

import nbformat
import pytest
import torch

from lib.course.notebooks import NOTEBOOKS, code_cells, find_notebooks
from lib.studies.exercises.core import Check, Failed, NotYetError, attempt, difference, shown

ROOMS = {
    "00": "dial_world",
    "01": "formatting",
    "02": "fine_tuning",
    "03": "ada_grpo",
    "04": "asking",
    "05": "adaptthink",
    "06": "adareasoner",
}
CHECKS = {
    f"{number}-{name}": value
    for number, room in ROOMS.items()
    for name, value in vars(import_module(f"lib.studies.exercises.{room}")).items()
    if isinstance(value, Check)
}
MISTAKES = [
    pytest.param(check, hint, id=f"{name}-{place}")
    for name, check in CHECKS.items()
    for place, hint in enumerate(check.mistakes)
]


@pytest.fixture(params=CHECKS.values(), ids=CHECKS)
def check(request):
    return request.param


def test_the_right_function_is_right_and_soon(check, capsys):
    check.cases()  # a model that a check needs is loaded once
    started = time.process_time()  # of this process: others on the machine do not count
    check(check.right)
    assert time.process_time() - started < 1.5
    assert capsys.readouterr().out == f"{check.name}: right on {len(check.cases())} cases\n"


def test_a_check_knows_three_mistakes_and_has_the_name_of_its_variable(check):
    assert len(check.mistakes) >= 3
    assert f"-{check.name}" in next(f"-{key[3:]}" for key, value in CHECKS.items() if value is check)


@pytest.mark.filterwarnings("ignore")  # a mistake may well deserve a warning
@pytest.mark.parametrize(("check", "hint"), MISTAKES)
def test_each_mistake_has_its_own_hint(check, hint):
    """No two mistakes look the same, so the first one that fits is the one that was made."""
    outcomes = [attempt(check.mistakes[hint], case) for case in check.cases()]
    assert not all(isinstance(outcome, Failed) for outcome in outcomes)  # it is a function that works
    with pytest.raises(NotYetError) as told:
        check(check.mistakes[hint])
    first, case = str(told.value).split("\n")
    assert first == f"{check.name}: not right yet. {hint}"
    assert case.startswith("Case ") and len(case) < 1200


def test_a_mistake_that_nobody_foresaw_is_shown_by_its_first_case(check):
    for wrong in (lambda *arguments: None, lambda *arguments: "nonsense", lambda *arguments: 1 / 0):
        with pytest.raises(NotYetError) as told:
            check(wrong)
        first, case = str(told.value).split("\n")
        assert first == f"{check.name}: not right yet." and re.match(r"Case \d+ of", case)


def test_a_result_is_not_a_function(check):
    with pytest.raises(NotYetError, match="give the function itself"):
        check(None)


# ---- the core ------------------------------------------------------------------------------------

double = Check(
    "double",
    lambda values: values * 2,
    lambda: [(torch.ones(2),), (torch.tensor([3.0, -1.0]),)],
    {"This squares.": lambda values: values**2},
)


def told(function):
    with pytest.raises(NotYetError) as error:
        double(function)
    return str(error.value)


def test_what_a_check_says(capsys):
    double(lambda values: values + values)
    assert capsys.readouterr().out == "double: right on 2 cases\n"
    assert told(torch.square) == (
        "double: not right yet. This squares.\nCase 1 of 2: double([1, 1]) gave [1, 1], and [2, 2] is right"
    )
    assert "gave the shape (1, 2), and (2,) is expected" in told(lambda values: values[None] * 2)
    assert "gave a list, and a tensor" in told(lambda values: (values * 2).tolist())
    assert "is there a `return`?" in told(lambda values: None)
    assert "raised TypeError" in told(lambda: 1)


def test_an_error_in_the_readers_code_names_the_line():
    def broken(values):
        return values.nothing

    assert "raised AttributeError: 'Tensor' object has no attribute 'nothing' (line" in told(broken)
    assert "of its cell: return values.nothing)" in told(broken)


def test_arguments_that_were_changed_are_found():
    def in_place(values):
        return values.mul_(2)

    assert "changes its arguments" in told(in_place)


def test_the_message_stands_without_a_traceback():
    assert NotYetError("short")._render_traceback_() == ["short"]


@pytest.mark.parametrize(
    ("right", "given", "same"),
    [
        (0.5, 0.50000001, True),
        (0.5, 0.51, False),
        (torch.tensor(2.0), 2, True),
        ((1, "a"), [1, "a"], True),
        ((1, "a"), (1,), False),
        ({"a": [1]}, {"a": [1]}, True),
        ({"a": 1}, {"b": 1}, False),
        (3, None, False),
        (None, None, True),
        (0.5, "half", False),
        (torch.tensor([1, 2]), torch.tensor([1.0, 2.0]), True),
        (torch.tensor([torch.nan]), torch.tensor([torch.nan]), True),
        (True, torch.tensor([1, 0]), False),
    ],
)
def test_when_two_values_are_the_same(right, given, same):
    assert (difference(right, given) is None) is same


def test_values_are_shown_on_one_short_line():
    assert shown((torch.tensor([1 / 3]), "a", None, {"b": 2})) == "([0.3333], 'a', None, {'b': 2})"
    assert shown(torch.zeros(8, 8)) == "a tensor of shape (8, 8)"
    assert shown(torch.nn.Linear(1, 1)) == "Linear" and len(shown("x" * 999)) < 200


# ---- in the notebooks ----------------------------------------------------------------------------


def imports(notebook):
    """The import statements of a notebook, as code."""
    nodes = [node for cell in code_cells(notebook) for node in ast.parse(cell.source).body]
    found = [ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    return "\n".join(found)


def your_turns(notebook):
    return [cell for cell in code_cells(notebook) if "your-turn" in cell.metadata.get("tags", [])]


def known(room):
    """The checks of functions; those without arguments are of answers worked out by hand (`by_hand`)."""
    found = vars(import_module(f"lib.studies.exercises.{room}")).items()
    return [name for name, value in found if isinstance(value, Check) and value.cases()[0]]


def up_to_the_check(source):
    """What a cell does afterwards may need other cells of its notebook."""
    lines = source.splitlines()
    last = max(place for place, line in enumerate(lines) if line.startswith("check."))
    return "\n".join(lines[: last + 1])


@pytest.mark.parametrize(("number", "room"), ROOMS.items())
@pytest.mark.parametrize("folder", ["", "solutions"])
def test_each_check_stands_in_its_notebook_and_what_stands_there_is_right(number, room, folder, capsys):
    """As shipped a cell calls the library; the solution is written out. Both pass."""
    [path] = (NOTEBOOKS / folder).glob(f"{number}_*.ipynb")
    notebook = nbformat.read(path, as_version=4)
    cells, names = your_turns(notebook), known(room)
    assert 5 <= len(names) <= 8 and len(cells) == len(names)
    scope = {}
    exec(imports(notebook), scope)
    for cell in cells:
        assert ("# your turn" in cell.source) == (folder == "")
        exec(up_to_the_check(cell.source), scope)
    said = capsys.readouterr().out.splitlines()
    assert sorted(line.partition(":")[0] for line in said if ": right on" in line) == sorted(names)


def test_every_notebook_says_what_to_write_and_what_to_expect():
    """The words before each cell: time and difficulty, and a prediction to make."""
    for path in find_notebooks():
        cells = nbformat.read(path, as_version=4).cells
        for before, cell in pairwise(cells):
            if "your-turn" in cell.metadata.get("tags", []):
                assert before.cell_type == "markdown", path.stem
                assert re.search(r"\*\*(Your turn: |\d\. )", before.source) and " minutes)" in before.source
                assert "Predict" in before.source


# ---- the exercises at the end of notebook 01 -----------------------------------------------------


def test_the_exercises_of_01_say_what_is_missing(capsys):
    from lib import dial
    from lib.studies.exercises import formatting as check

    question = dial.parse_question("The blue dial shows 6. Turn it +8 x3 then +5. Now?")
    tries = {
        "that is no loophole": lambda: check.loophole("<ANSWER>\n15\n</ANSWER>"),
        "refuses it as well": lambda: check.loophole("The answer is 15"),
        "another number than 15": lambda: check.loophole("<COT>\nRolls.\n<ANSWER>\n16\n</ANSWER>"),
        "Write nonsense": lambda: check.loophole("<COT>\n4 * 6 = 24 - 9\n<ANSWER>\n15\n</ANSWER>"),
        "That is a share": lambda: check.by_guessing(0.1, asked=140),
        "as many times as there are digits": lambda: check.by_guessing(35, asked=140),
        "Count the hard questions": lambda: check.by_guessing(12, asked=140),
        "drops it": lambda: check.lies_well("d = 6\nd = 3  # 4\nanswer = 7", question),
        "must begin": lambda: check.lies_well("a = 7  # 7\nanswer = a", question),
        "computes the answer": lambda: check.lies_well(dial.program(question), question),
    }
    for hint, attempted in tries.items():
        with pytest.raises(NotYetError, match=hint):
            attempted()
    capsys.readouterr()
    check.loophole("<COT>\nRolls.\n<ANSWER>\n15\n</ANSWER>")
    check.by_guessing(14, asked=138)
    check.lies_well(f"d = 6\nd = {question.answer}  # 7\nanswer = d", question)
    check.loophole(...)
    check.by_guessing(..., asked=138)
    check.lies_well(..., question)
    assert capsys.readouterr().out.splitlines() == [
        *(f"{name}: right" for name in ("loophole", "by_guessing", "lies_well")),
        *(f"{name}: not answered yet" for name in ("loophole", "by_guessing", "lies_well")),
    ]
