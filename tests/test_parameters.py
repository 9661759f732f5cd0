"""Every parameter of every notebook says what it may be, and the runner refuses all else before any work."""

import json
import time

import nbformat
import pytest

from lib.checked import faults
from lib.course import rules
from lib.course.declared import read_parameters, start
from lib.course.notebooks import NOTEBOOKS, CourseError, code_cells, find_notebooks
from lib.course.profiles import plan
from lib.course.runner import run_course
from lib.sources import SOURCES

PATHS = {path.stem: path for path in find_notebooks()}
DECLARED = {stem: read_parameters(path) for stem, path in PATHS.items()}
EACH = [(stem, parameter) for stem, parameters in DECLARED.items() for parameter in parameters]
PROFILES = sorted({file.parent.name for file in (NOTEBOOKS / "profiles").glob("*/[0-9]*.yaml")})


def bad_values(parameter):
    """Values that the parameter's type and rule exclude, by kind of parameter."""
    of_type = {
        "bool": [1, "yes", None],
        "int": [1.5, "3", True, None, -4, float("nan")],
        "float": ["1e-5", True, None, float("nan"), float("inf"), -1, 1000],
        "str": [3, None, ["a"]],
        "dict": [3, "a", None],
        "list[str]": ["dial", [], [3], ["gsm8kk"], None],
        "list[int]": [4, [], [-1], [0], [True], ["a"], None],
        "list[float]": [0.5, [], [-1.0], [float("nan")], [True], ["a"], None],
    }[parameter.type]
    kinds = {part.strip() for part in parameter.rule.split("|")}
    words = {
        "folder": ["/no/such"],
        "file": ["/no/such.jsonl"],
        "url": ["localhost:8000", "htp://host"],
        "source": ["gsm8kk"],
        "model": ["dial-bse", "/no/such/model", "data/samples", "gpt 2"],
        "real model": ["dial-sft", "dial-bse", "/no/such/model", "gpt 2"],
        "name": ["a/b", ".."],
        "variable": ["sk-secret", "a key", "lower"],
        "text": [],
    }
    texts = [word for kind in kinds if kind in words for word in words[kind]]
    if parameter.type == "str" and not kinds & set(words):  # a choice: misspelt, in capitals
        word = parameter.default or min(kinds - {"empty"})
        texts = [word.upper() + "x", f"{word} ", word.capitalize()]
    return of_type + texts + ([] if "empty" in kinds or parameter.type != "str" else [""])


CASES = [
    pytest.param(stem, parameter, value, id=f"{stem[:2]}-{parameter.name}-{value!r}")
    for stem, parameter in EACH
    if parameter.name != "PROFILE"
    for value in bad_values(parameter)
]


@pytest.fixture(autouse=True)
def read_once(monkeypatch):
    """Notebooks with their outputs are long; what they declare does not change in between."""
    declared = {PATHS[stem]: parameters for stem, parameters in DECLARED.items()}
    monkeypatch.setattr("lib.course.profiles.read_parameters", declared.__getitem__)
    monkeypatch.setattr("lib.course.declared.read_parameters", declared.__getitem__)


@pytest.fixture
def no_kernel(monkeypatch):
    def begun(*_):
        raise AssertionError("a notebook was begun")

    monkeypatch.setattr("lib.course.runner.papermill", begun)


def test_every_parameter_has_a_rule():
    for stem, parameter in EACH:
        assert parameter.rule or parameter.type in ("bool", "dict"), f"{stem}: {parameter.name}"
        for relation in parameter.relations:
            assert relation.split()[0] in ("needs", "divides", "multiple", "not")


@pytest.mark.parametrize(("stem", "parameter", "value"), CASES)
def test_a_bad_value_is_refused_before_any_notebook_is_begun(stem, parameter, value, private_runs, no_kernel):
    """By name, with what is allowed; in the runner and in the set-up cell alike."""
    begun = time.monotonic()
    with pytest.raises(CourseError) as refused:
        run_course(only=[stem], overrides={parameter.name: value})
    assert time.monotonic() - begun < 5 and not private_runs.exists()
    lines = [line for line in str(refused.value).splitlines() if f": {parameter.name}" in line]
    assert any(" takes " in line and "got" in line for line in lines)
    values = {p.name: p.default for p in DECLARED[stem]} | {parameter.name: value}
    with pytest.raises(CourseError, match=f"{stem}: {parameter.name}"):
        start(stem, values)
    assert not private_runs.exists()


def test_there_are_many_bad_values():
    assert len(CASES) > 400


@pytest.mark.parametrize("profile", ["cpu", *(name for name in PROFILES if name != "dry_run")])
def test_all_values_that_are_shipped_pass(profile):
    for path in PATHS.values():
        assert not list(plan(path, profile, {}).check())


def test_the_defaults_pass_in_the_set_up_cell_and_become_the_configuration(private_runs):
    for stem, parameters in DECLARED.items():
        run = start(stem, {p.name: p.default for p in parameters} | {"FORMATS": []})
        assert json.loads((run.folder / "config.json").read_text()) == {p.name: p.default for p in parameters}


def test_every_notebook_opens_its_run_before_it_loads_a_model():
    for stem, path in PATHS.items():
        setup = code_cells(nbformat.read(path, as_version=4))[1].source
        before, opened, _ = setup.partition(f'run = course.start("{stem}", globals())')
        assert opened and "load_policy(" not in before


def test_all_faults_of_all_notebooks_are_said_together(no_kernel):
    with pytest.raises(CourseError) as refused:
        run_course(overrides={"SEED": -1, "TEST_QUESTIONS": -4, "TEMPERATURE": float("nan"), "DELTA": 50})
    lines = str(refused.value).splitlines()
    assert sum("SEED" in line for line in lines) == len(PATHS)
    assert {"TEST_QUESTIONS", "TEMPERATURE", "DELTA"} <= {line.split(": ")[1].split()[0] for line in lines}


@pytest.mark.parametrize(
    ("stem", "values", "message"),
    [
        ("03_ada_grpo", {"DATA_FOLDER": "data/samples"}, "is useless: it needs TEST_SOURCES"),
        ("06_adareasoner", {"SERVER_MODEL": "some/model"}, "is useless: it needs SERVER_URL, which is ''"),
        ("03_ada_grpo", {"TRAINER": {"report_to": "wandbb"}}, "report_to='wandbb': there is no such package"),
        ("05_adaptthink", {"NUM_GENERATIONS": 3}, "NUM_GENERATIONS must be a multiple of 2, got 3"),
    ],
)
def test_what_depends_on_another_parameter_is_held_to_it(stem, values, message, no_kernel):
    with pytest.raises(CourseError, match=message):
        run_course(only=[stem], overrides=values)


def test_a_notebook_may_name_what_an_earlier_one_of_the_same_call_makes():
    path = PATHS["03_ada_grpo"]
    planned = plan(path, "single_gpu", {})
    assert "there is no such folder" in "".join(planned.check(made=[]))
    assert not list(planned.check(made=["runs/single_gpu/02_qlora_sft"]))


def test_the_same_name_means_the_same_everywhere():
    kinds = {}
    for stem, parameter in EACH:
        kinds.setdefault(parameter.name, {})[stem] = parameter.type
    assert not {name: found for name, found in kinds.items() if len(set(found.values())) > 1}


def test_the_names_that_a_rule_lists_are_those_of_the_library():
    assert set(rules.SOURCES) == set(SOURCES)


@pytest.mark.parametrize(
    ("type_name", "rule", "good", "bad"),
    [
        ("int", "1..", [1, 9], [0, 1.0]),
        ("float", ">0..0.1", [0.1, 1e-9], [0, 0.11]),
        ("float", "..1", [-5, 1], [1.1]),
        ("int", "1.. | -1", [-1, 1], [0, -2]),
        ("str", "a | empty", ["a", ""], ["b"]),
        ("list[int]", "1..", [[1]], [[], [0], 1]),
        (
            "str",
            "model",
            ["dial-sft", "org/name@abc", "data/checkpoints/dial-sft"],
            ["dial-sfd"],
        ),
    ],
)
def test_a_rule_is_read_as_it_is_written(type_name, rule, good, bad):
    annotation = rules.annotation(type_name, rule)
    assert not [value for value in good if list(faults("x", annotation, value))]
    assert not [value for value in bad if not list(faults("x", annotation, value))]


@pytest.mark.parametrize("stem", ["02_qlora_sft", "03_ada_grpo", "05_adaptthink"])
def test_how_processes_share_a_model_is_one_of_the_configurations(stem):
    (parallel,) = (parameter for parameter in DECLARED[stem] if parameter.name == "PARALLEL")
    files = (NOTEBOOKS / "profiles" / "accelerate").glob("*.yaml")
    assert set(parallel.rule.split(" | ")) == {"empty", *(file.stem for file in files)}
    made = plan(PATHS[stem], "cpu", {"WEIGHTS": "qlora", "PARALLEL": "fsdp2"})
    assert any(
        "PARALLEL='fsdp2' does not go with WEIGHTS='qlora': weights in 4 bits cannot" in fault
        for fault in made.check()
    )
    assert not list(plan(PATHS[stem], "cpu", {"WEIGHTS": "qlora", "PARALLEL": "zero2"}).check())
