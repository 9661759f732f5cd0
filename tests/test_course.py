import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from lib.course import __main__ as command
from lib.course import runner
from lib.course.declared import read_parameters
from lib.course.execute import explain_failure
from lib.course.notebooks import CourseError, code_hash
from lib.course.profiles import assignment, plan, read_values
from lib.course.runner import run_course
from lib.course.stamp import stamp

PARAMETERS = """\
PROFILE: str = "cpu"  # name of the profile
STEPS: int = 3  # how many
RATE: float = 1.0e-3  # how fast
DEPTHS: list[int] = [1, 2]  # which
"""
USES = "print(PROFILE, STEPS, RATE, DEPTHS)"


def write(folder, name, *cells, parameters=PARAMETERS):
    folder.mkdir(exist_ok=True, parents=True)
    notebook = new_notebook(
        cells=[
            new_markdown_cell("# Title\n\n**Measured**: not yet", metadata={"tags": ["card"]}),
            new_code_cell(parameters, metadata={"tags": ["parameters"]}),
            *(new_code_cell(source) for source in cells),
        ],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )
    nbformat.write(notebook, folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


def profile(folder, name, notebook, **values):
    (folder / "profiles" / name).mkdir(parents=True, exist_ok=True)
    (folder / "profiles" / name / f"{notebook}.yaml").write_text(yaml.safe_dump(values))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "notebooks"


def test_parameters_are_read_with_type_default_and_meaning(folder):
    parameters = read_parameters(write(folder, "00_a", USES))
    assert [(p.name, p.type, p.default, p.help) for p in parameters][1:3] == [
        ("STEPS", "int", 3, "how many"),
        ("RATE", "float", 0.001, "how fast"),
    ]


@pytest.mark.parametrize(
    ("parameters", "use", "message"),
    [
        ("A: int = 1", "print(1)", "no cell uses the parameter A"),
        ("A: int = 1", "A = A + 1", "the parameter A is overwritten"),
        ("A: int = 1 + B", "print(A)", "A must be a literal"),
        ("A = 1", "print(A)", "line 1: write `NAME: type"),
    ],
)
def test_a_parameter_that_would_be_ignored_is_an_error(folder, parameters, use, message):
    with pytest.raises(CourseError, match=message):
        read_parameters(write(folder, "00_a", use, parameters=parameters))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"STEP": 4}, r"profile file smoke/00_a.yaml: STEP is not a parameter.*did you mean 'STEPS'"),
        ({"STEPS": "4"}, "STEPS takes a whole number, got '4'"),
        ({"STEPS": True}, "STEPS takes a whole number, got True"),
        ({"RATE": "1e-5"}, r"write 1.0e-5"),
        ({"DEPTHS": 3}, r"DEPTHS takes a list of \(a whole number\) with at least one, none twice, got 3"),
    ],
)
def test_a_profile_file_is_checked_before_anything_runs(folder, values, message, private_runs):
    write(folder, "00_a", USES)
    profile(folder, "smoke", "00_a", **values)
    with pytest.raises(CourseError, match=message):
        run_course(profile="smoke", folder=folder)
    assert not private_runs.exists()


ODD = [
    *("2024-13-45", "9" * 5000, "!!int abc", "!!int ''", "!!bool abc", "!!timestamp abc", "[" * 3000),
    *("010", "-010", "1:30", "-1:30.5", "[1, 010]", "{a: 1:30}", "{010: a}"),
]


@pytest.mark.parametrize("value", ODD, ids=lambda value: value[:20])
def test_what_yaml_cannot_build_or_reads_as_another_number_is_refused_by_name(value, folder):
    """Python's own errors came through, and 010 was 8 in silence; in a profile's file alike."""
    with pytest.raises(CourseError, match=re.escape(f"--set SEED={value[:20]}")):
        assignment(f"SEED={value}")
    write(folder, "00_a", USES)
    profile(folder, "smoke", "00_a")
    (folder / "profiles" / "smoke" / "00_a.yaml").write_text(f"STEPS: {value}\n")
    with pytest.raises(CourseError, match=r"smoke/00_a.yaml: not plain YAML"):
        plan(folder / "00_a.ipynb", "smoke", {})


@pytest.mark.parametrize(
    ("text", "value"),
    [("10", 10), ("0", 0), ("0.5", 0.5), ("1_000", 1000), ("'010'", "010"), ("a:b", "a:b"), ("yes", True)],
)
def test_a_value_that_is_what_it_looks_like_is_taken(text, value):
    assert assignment(f"A={text}") == ("A", value)


def test_a_file_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_bytes("A: für".encode("latin-1"))
    with pytest.raises(CourseError, match=r"a.yaml: not plain YAML in UTF-8"):
        read_values(tmp_path / "a.yaml")


def test_an_unknown_profile_notebook_or_override_is_named(folder):
    write(folder, "00_a", USES)
    profile(folder, "smoke", "00_a", STEPS=1)
    with pytest.raises(CourseError, match=r"no profile 'smok'; did you mean 'smoke'\?. There are cpu, smoke"):
        run_course(profile="smok", folder=folder)
    with pytest.raises(CourseError, match="no notebook '07'"):
        run_course(only=["07"], folder=folder)
    with pytest.raises(CourseError, match=r"--set STEP: none of the chosen.*did you mean 'STEPS'"):
        run_course(overrides={"STEP": 1}, folder=folder)


def test_a_run_name_keeps_runs_of_a_sweep_apart(folder, private_runs):
    write(folder, "00_a", USES, parameters=PARAMETERS + 'RUN_NAME: str = ""  # [name | empty] of the run\n')
    for name in ("a", "b", "a"):
        outcomes = run_course(folder=folder, overrides={"RUN_NAME": name})
    assert outcomes[0].status == "finished before"
    assert (private_runs / "cpu" / "00_a" / "b" / "00_a.ipynb").exists()
    (private_runs / "cpu" / "00_a" / "checkpoint").mkdir()
    (private_runs / "cpu" / "00_a" / "checkpoint" / "weights").touch()
    for name in ("checkpoint", "a/b"):
        with pytest.raises(CourseError, match="RUN_NAME"):
            run_course(folder=folder, overrides={"RUN_NAME": name})


def test_a_notebook_without_a_profile_file_is_left_out(folder):
    path = write(folder, "00_a", USES)
    profile(folder, "smoke", "01_b", STEPS=1)
    assert plan(path, "smoke", {}).left_out == "not in profile smoke"


def test_the_course_runs_stops_at_a_failure_keeps_what_is_done_and_goes_on(folder, private_runs, capsys):
    write(folder, "00_a", USES)
    flag = folder / "ready"
    write(folder, "01_b", USES, f"assert open({str(flag)!r}).read()")
    write(folder, "02_c", USES)

    first = run_course(folder=folder, overrides={"STEPS": 5})
    assert [(o.notebook, o.status) for o in first] == [("00_a", "ok"), ("01_b", "failed")]
    said = capsys.readouterr().out
    assert "01_b  FAILED in cell 4" in said and "FileNotFoundError" in said and str(flag) in said
    executed = nbformat.read(private_runs / "cpu" / "00_a" / "00_a.ipynb", as_version=4)
    assert "cpu 5 0.001 [1, 2]" in executed.cells[-1].outputs[0].text
    assert first[0].seconds > 0 and first[0].peak_memory_mb > 20

    flag.write_text("yes")
    second = run_course(folder=folder, overrides={"STEPS": 5})
    assert [o.status for o in second] == ["finished before", "ok", "ok"]
    assert "00_a" in runner.table(second) and "finished before" in runner.table(second)
    third = run_course(folder=folder, overrides={"STEPS": 6}, only=["00"])
    assert [o.status for o in third] == ["ok"]  # other parameters, another result


@pytest.mark.parametrize("left", [None, "", '{"cells": [{"cell_', "[]", "{}", "3"])
def test_a_failure_with_a_torn_notebook_is_explained_by_the_log(left, tmp_path):
    (tmp_path / "papermill.log").write_text("first\nkilled by signal 9\n")
    if left is not None:
        (tmp_path / "executed.ipynb").write_text(left)
    said = explain_failure("00_a", tmp_path / "executed.ipynb", -9)
    assert "papermill ended with code -9" in said and said.endswith("killed by signal 9")


def test_a_link_that_leads_nowhere_in_a_models_folder_is_no_traceback(tmp_path):
    model, notebook = tmp_path / "model", new_notebook(cells=[])
    planned = SimpleNamespace(given={}, named_paths=lambda: [str(model)])
    model.mkdir()
    (tmp_path / "weights").write_text("old")
    (model / "link").symlink_to(tmp_path / "weights")
    found = [runner._digest(notebook, planned)]
    (tmp_path / "weights").write_text("newer")  # what a link leads to counts
    found.append(runner._digest(notebook, planned))
    (tmp_path / "weights").unlink()
    found.append(runner._digest(notebook, planned))
    assert len(set(found)) == 3


def test_the_command_line_ends_with_1_and_one_paragraph(tmp_path, capsys):
    for words, message in [
        (["--set", "SEDE=1"], "--set SEDE: none of the chosen notebooks declares it"),
        (["--set", "SEED"], "write NAME=VALUE"),
    ]:
        assert command.main(words) == 1
        assert message in capsys.readouterr().err
    done = subprocess.run(
        [sys.executable, "-m", "lib.course", "--profile", "cpuu"],
        env=os.environ | {"RUNS_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "There is no profile 'cpuu'; did you mean 'cpu'?" in done.stderr


def test_a_run_folder_that_cannot_be_written_ends_the_course_with_its_name(folder, tmp_path, monkeypatch):
    write(folder, "00_a", USES)
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    monkeypatch.setenv("RUNS_DIR", str(blocked))
    monkeypatch.setattr(runner, "find_notebooks", lambda *_: [folder / "00_a.ipynb"])
    assert command.main([]) == 1


def test_stamping_brings_outputs_home_and_a_change_makes_the_stamp_stale(folder, private_runs):
    path = write(folder, "00_a", USES)
    readme = folder.parent / "README.md"
    readme.write_text("| [A](notebooks/00_a.ipynb) | Why? | never | much |\n| other | row |\n")
    run_course(folder=folder)
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(1, new_markdown_cell("Written after the run."))
    nbformat.write(notebook, path)
    stamp(plan(path, "cpu", {}))
    assert re.fullmatch(
        r"\| \[A\]\(notebooks/00_a.ipynb\) \| Why\? \| \d+:\d\d \| \d+ MB \|\n\| other \| row \|\n",
        readme.read_text(),
    )
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata.stamp.code_sha256 == code_hash(notebook)
    assert notebook.metadata.stamp.profile == "cpu" and notebook.metadata.stamp.seconds > 0
    assert "cpu 3 0.001 [1, 2]" in notebook.cells[3].outputs[0].text
    assert "MB at most" in notebook.cells[0].source
    assert len(notebook.cells) == 4 and "papermill" not in json.dumps(notebook)
    notebook.cells[3].source += "\nprint(1)"
    assert notebook.metadata.stamp.code_sha256 != code_hash(notebook)
    nbformat.write(notebook, path)
    with pytest.raises(CourseError, match="other code or parameters"):
        stamp(plan(path, "cpu", {}))


def test_stamping_brings_home_what_the_text_quotes(folder, private_runs):
    """Sorted and to six digits; gone when nothing is quoted any more."""
    quotes = "from lib.runs import start_run\n\nrun = start_run('00_a', PROFILE, {})\n"
    path = write(folder, "00_a", USES, quotes + "run.quote(b=2 / 3, a={'n': 3})")
    run_course(folder=folder)
    stamp(plan(path, "cpu", {}))
    kept = folder.parent / "data" / "numbers" / "00_a.json"
    assert kept.read_text() == '{\n  "a": {\n    "n": 3\n  },\n  "b": 0.666667\n}\n'
    write(folder, "00_a", USES, quotes)
    run_course(folder=folder)
    stamp(plan(path, "cpu", {}))
    assert not kept.exists()


def test_solutions_run_as_they_stand_and_are_stamped_beside_the_notebooks(folder, private_runs, monkeypatch):
    """In runs/cpu/solutions; README and numbers are the notebooks' own."""
    path = write(folder / "solutions", "00_a", "print(STEPS)")
    readme = folder / "README.md"
    readme.write_text("| [A](notebooks/00_a.ipynb) | Why? | never | much |\n")
    monkeypatch.setattr(command, "find_solutions", lambda: [path])
    assert command.main(["--solutions", "--only", "00"]) == 0
    assert (private_runs / "cpu" / "solutions" / "00_a" / "00_a.ipynb").exists()
    assert command.main(["--solutions", "--stamp"]) == 0
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata.stamp.code_sha256 == code_hash(notebook)
    assert notebook.cells[2].outputs[0].text == "3\n" and "never" in readme.read_text()


def test_a_solution_takes_no_other_values(capsys):
    for words in (["--set", "COUNT=1"], ["--profile", "smoke"]):
        assert command.main(["--solutions", *words]) == 1
        assert "a solution runs as it stands" in capsys.readouterr().err


def test_a_run_with_other_parameters_is_not_stamped(folder):
    path = write(folder, "00_a", USES)
    run_course(folder=folder, overrides={"STEPS": 1})
    with pytest.raises(CourseError, match="other code or parameters"):
        stamp(plan(path, "cpu", {}))


def test_side_by_side_the_longest_notebook_goes_first(folder, monkeypatch):
    begun = []

    def papermill(path, output, expected, stop):
        begun.append((path.stem, expected))
        return 0, 1.0, 1.0

    monkeypatch.setattr(runner, "papermill", papermill)
    for name, seconds in (("00_short", 3.0), ("01_long", 60.0), ("02_middle", 9.0), ("03_new", None)):
        path = write(folder, name, USES)
        if seconds:
            notebook = nbformat.read(path, as_version=4)
            notebook.metadata.stamp = {"profile": "cpu", "seconds": seconds}
            nbformat.write(notebook, path)
    outcomes = run_course(folder=folder, jobs=2)
    assert [outcome.notebook for outcome in outcomes] == ["00_short", "01_long", "02_middle", "03_new"]
    assert {begun[0], begun[1]} == {("01_long", 60.0), ("02_middle", 9.0)}  # the others begin at once
    begun.clear()
    run_course(folder=folder, again=True)
    assert [name for name, _ in begun] == ["00_short", "01_long", "02_middle", "03_new"]


def test_notebooks_run_side_by_side_and_none_begins_after_a_failure(folder, private_runs):
    """Two meet: each waits for the other's file. One fails beside a neighbour, which ends only after that."""
    meet = (
        "import pathlib, time\n\npathlib.Path('{mine}').touch()\nend = time.monotonic() + 120\n"
        "while not pathlib.Path('{other}').exists():\n    assert time.monotonic() < end\n    time.sleep(0.05)"
    )
    private_runs.mkdir(parents=True, exist_ok=True)
    here = {name: str(private_runs / name) for name in ("fails", "ends", "failed")}
    write(
        folder,
        "00_fails",
        USES,
        meet.format(mine=here["fails"], other=here["ends"]),
        "raise ValueError('no')",
    )
    write(folder, "01_ends", USES, meet.format(mine=here["ends"], other=here["failed"]))
    write(folder, "02_never", USES)

    def say(line: str) -> None:
        if "FAILED" in line:
            (private_runs / "failed").touch()

    outcomes = run_course(folder=folder, jobs=2, say=say)
    assert [(o.notebook, o.status) for o in outcomes] == [("00_fails", "failed"), ("01_ends", "ok")]
