"""Every parameter of every notebook says what it may be, and the runner refuses all else before any work."""

import json

import nbformat
import pytest
from faults.parameters import BAD_OPTIONS, DECLARED, EACH, PATHS, bad_values, fault_of, read_once

from lib.checked import faults
from lib.course import rules
from lib.course.declared import start
from lib.course.notebooks import NOTEBOOKS, CourseError, code_cells
from lib.course.profiles import plan
from lib.course.runner import run_course
from lib.methods import METHODS
from lib.methods.sft import SFTConfig
from lib.sources import SOURCES

TWO = ["gsm8k", "csqa"]
REAL = {"TEST_SOURCES": ["dial"], "TRAIN_SOURCES": ["dial"]}
PROFILES = sorted({file.parent.name for file in (NOTEBOOKS / "profiles").glob("*/[0-9]*.yaml")})


CASES = [
    pytest.param(stem, parameter, value, id=f"{stem[:2]}-{parameter.name}-{value!r}")
    for stem, parameter in EACH
    if parameter.name != "PROFILE"
    for value in bad_values(parameter)
]


@pytest.fixture(autouse=True)
def quickly():
    with read_once():
        yield


@pytest.fixture
def no_kernel(monkeypatch):
    def begun(*_):
        raise AssertionError("a notebook was begun")

    monkeypatch.setattr("lib.course.runner.papermill", begun)


def test_every_parameter_has_a_rule():
    for stem, parameter in EACH:
        assert parameter.rule or parameter.type in ("bool", "dict"), f"{stem}: {parameter.name}"
        for relation in parameter.relations:
            assert relation.split()[0] in ("needs", "divides", "multiple", "not", "at")


@pytest.mark.parametrize(("stem", "parameter", "value"), CASES)
def test_a_bad_value_is_refused_before_any_notebook_is_begun(stem, parameter, value, private_runs, no_kernel):
    """By name, with what is allowed; in the runner and in the set-up cell alike."""
    assert fault_of(stem, parameter, value) == ""


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
        (
            "03_ada_grpo",
            {"DATA_FOLDER": "data/samples"},
            "is useless: it needs TRAIN_SOURCES, .*, or TEST_SOURCES",
        ),
        ("06_adareasoner", {"SERVER_MODEL": "some/model"}, "is useless: it needs SERVER_URL, which is ''"),
        (
            "06_adareasoner",
            {"SERVER_URL": "http://localhost:8000/v1", "SERVER_MODEL": "some/model"},
            "REAL_SOURCE 'adareasoner' is not on the hub; name its QUESTIONS_FILE",
        ),
        ("03_ada_grpo", {"TRAINER": {"report_to": "wandbb"}}, "report_to='wandbb': there is no such package"),
        ("05_adaptthink", {"NUM_GENERATIONS": 3}, "NUM_GENERATIONS must be a multiple of 2, got 3"),
        ("05_adaptthink", {"START": "</think>"}, "START must not be <think> or </think>, got '</think>'"),
        (
            "05_adaptthink",
            {"MAX_NOTHINKING_TOKENS": 161},
            "MAX_NOTHINKING_TOKENS must be at most MAX_NEW_TOKENS = 160, got 161",
        ),
        (
            "03_ada_grpo",
            {"TRAIN_SOURCES": TWO, "BATCHES": 1, "PROMPTS": 1, "MICRO_BATCH_SIZE": 8},
            "PROMPTS must be at least .* = 2, got 1",
        ),
    ],
)
def test_what_depends_on_another_parameter_is_held_to_it(stem, values, message, private_runs, no_kernel):
    """In the runner and in the set-up cell alike."""
    with pytest.raises(CourseError, match=message):
        run_course(only=[stem], overrides=values)
    with pytest.raises(CourseError, match=message):
        start(stem, {p.name: p.default for p in DECLARED[stem]} | values)


SOURCE_LISTS = [(stem, p.name) for stem, p in EACH if p.type == "list[str]" and p.rule == "source"]


@pytest.mark.parametrize(("stem", "name"), SOURCE_LISTS)
def test_every_number_of_questions_is_one_a_source_at_least(stem, name):
    """`load_tasks` refuses fewer, for the test after all training."""
    counts = [p.name for p in DECLARED[stem] if f"at least len({name})" in p.relations]
    for count in counts:
        said = "".join(plan(PATHS[stem], "cpu", {name: TWO, count: 1}).check())
        assert f"{count} must be at least len({name}) = 2, got 1" in said or f"{count} takes" in said
        assert f"{count} must" not in "".join(plan(PATHS[stem], "cpu", {name: TWO}).check())
    assert counts


@pytest.mark.parametrize(("stem", "name"), SOURCE_LISTS)
def test_a_source_twice_or_without_the_questions_is_refused(stem, name, private_runs, no_kernel):
    """Without a data folder: those of the hub, as the catalogue has them."""
    (parameter,) = (p for p in DECLARED[stem] if p.name == name)
    assert fault_of(stem, parameter, ["gsm8k", "gsm8k"]) == ""
    split = "test" if name == "TEST_SOURCES" else "train"
    for source, entry in SOURCES.items():
        if entry.hub is not None and split in entry.splits:
            assert not list(plan(PATHS[stem], "cpu", {name: [source]}).check(made=[]))
        else:
            assert fault_of(stem, parameter, ["dial", source]) == ""


@pytest.mark.parametrize(("stem", "name"), SOURCE_LISTS)
def test_a_data_folder_serves_any_of_the_sources(stem, name, tmp_path):
    (tmp_path / f"gsm8k_{'test' if name == 'TEST_SOURCES' else 'train'}.jsonl").touch()
    given = {name: ["gsm8k"], "DATA_FOLDER": str(tmp_path)}
    assert not list(plan(PATHS[stem], "cpu", given).check(made=[]))


TRAINERS = [stem for stem, parameter in EACH if parameter.name == "TRAINER"]


@pytest.mark.parametrize("stem", TRAINERS)
@pytest.mark.parametrize("options", BAD_OPTIONS, ids=str)
def test_an_option_of_trl_is_refused_before_any_notebook_is_begun(stem, options, private_runs, no_kernel):
    """The runner and the set-up cell ask the configuration of what the notebook trains."""
    (parameter,) = (parameter for parameter in DECLARED[stem] if parameter.name == "TRAINER")
    assert fault_of(stem, parameter, options) == ""
    kind = METHODS.get(stem.partition("_")[2], SFTConfig)
    assert f"trl.{kind.arguments.__name__}" in parameter.help


@pytest.mark.parametrize(
    ("stem", "values", "message"),
    [
        ("02_qlora_sft", {"TEST_SOURCES": ["gsm8k"]}, "gsm8k_test.jsonl, which TEST_SOURCES takes"),
        ("03_ada_grpo", {"TEST_SOURCES": ["dial", "csqa"]}, "csqa_test.jsonl, which TEST_SOURCES takes"),
        ("05_adaptthink", {"PILOT_SOURCES": ["math"]} | REAL, "math_train.jsonl, which PILOT_SOURCES takes"),
        ("01_data_formatting", {"TRAIN_SOURCES": ["gsm8k"]}, "gsm8k_train.jsonl, which TRAIN_SOURCES takes"),
    ],
)
def test_a_data_folder_without_the_questions_is_refused(stem, values, message, tmp_path, no_kernel):
    """The test questions are read after all training."""
    with pytest.raises(CourseError, match=f"DATA_FOLDER holds no {message}"):
        run_course(only=[stem], overrides=values | {"DATA_FOLDER": str(tmp_path)})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"NUM_PROCESSES": 64, "MICRO_BATCH_SIZE": 1, "PROMPTS": 8}, "NUM_PROCESSES takes 2 at most"),
        ({"ENGINE": "vllm"}, "ENGINE asks for vLLM, which is not installed"),
        ({"TRAINER": {"use_vllm": True}}, "TRAINER asks for vLLM, which is not installed"),
    ],
)
def test_what_this_machine_does_not_have_is_refused(values, message, no_kernel, monkeypatch):
    monkeypatch.setattr("lib.course.declared.find_spec", lambda name: None)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(CourseError, match=message):
        run_course(only=["03_ada_grpo"], overrides=values)


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
        ("int", "1..", [1, 9, 2**32 - 1], [0, 1.0, 2**32, 10**400]),
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
