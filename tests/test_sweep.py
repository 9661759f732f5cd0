"""Sweeps: a grid in one file, run side by side, resumed, and gathered in one table."""

import os
import subprocess
import sys

import pandas as pd
import pytest
import yaml
from test_course import write

from lib.course.notebooks import CourseError
from lib.runs import ROOT, held
from lib.studies import sweep
from lib.studies.sweep import read_sweep, run_name

PARAMETERS = """\
PROFILE: str = "cpu"  # [name] of the profile
RUN_NAME: str = ""  # [name | empty] of the run
RATE: float = 1.0e-3  # [>0..1] how fast
SEED: int = 0  # [0..] of all draws
COUNT: int = 1  # [1..] of something
"""
WORK = """\
from pathlib import Path

from lib.runs import start_run

run = start_run("00_a", PROFILE, {"RATE": RATE, "SEED": SEED, "COUNT": COUNT}, RUN_NAME)
with (run.folder / "begun").open("a") as file:
    file.write("x")
assert RATE < 0.2 or SEED == 0 or Path("mended").exists(), "this one fails"
run.finish({"score": RATE * (SEED + 1) * COUNT, "arm": {"tokens": 7}})
"""
GRID = {"notebook": "00", "grid": {"RATE": [0.1, 0.2], "SEED": [0, 1]}, "jobs": 2}


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "notebooks", "00_a", WORK, parameters=PARAMETERS)
    return tmp_path / "notebooks"


@pytest.fixture
def main(folder, monkeypatch):
    read = sweep.read_sweep
    monkeypatch.setattr(sweep, "read_sweep", lambda file: read(file, folder))
    return lambda *words: sweep.main([str(word) for word in words])


def saved(folder, text, name="rates"):
    file = folder.parent / f"{name}.yaml"
    file.write_text(text if isinstance(text, str) else yaml.safe_dump(text, sort_keys=False))
    return file


def test_a_grid_runs_past_a_failure_and_the_same_command_does_only_what_is_left(
    folder, main, private_runs, capsys
):
    file = saved(folder, GRID | {"set": {"COUNT": 2}, "show": ["arm.tokens", "scoer"]})
    assert main(file) == 1
    said = capsys.readouterr()
    assert said.err == "failed: 00_a/rates+RATE=0.2+SEED=1\n", said.out
    assert "AssertionError: this one fails" in said.out
    assert "no numbers called scoer" in said.out
    place = private_runs / "cpu" / "00_a"
    table = pd.read_csv(place / "rates.csv")
    assert table["status"].tolist() == ["finished"] * 3 + ["not finished"]
    assert table["score"].tolist()[:3] == pytest.approx([0.2, 0.4, 0.4])
    assert table[["RATE", "SEED"]].values.tolist() == [[0.1, 0], [0.1, 1], [0.2, 0], [0.2, 1]]

    (folder / "mended").touch()
    assert main(file) == 0
    assert "4 of 4 cases" in capsys.readouterr().out
    begun = {path.parent.name: path.read_text() for path in place.glob("*/begun")}
    assert begun["rates+RATE=0.2+SEED=1"] == "xx" and sorted(begun.values()) == ["x", "x", "x", "xx"]
    assert pd.read_csv(place / "rates.csv")["score"].tolist() == pytest.approx([0.2, 0.4, 0.4, 0.8])


def test_options_of_trl_are_those_of_the_notebook_wherever_they_are_written(tmp_path):
    file = tmp_path / "options.yaml"
    text = yaml.safe_dump({"notebook": "03", "grid": {"TRAINER": [{"num_iterations": 2}]}})
    file.write_text(text)
    (case,) = read_sweep(file).cases
    assert case.values == {"TRAINER": {"num_iterations": 2}}
    file.write_text(text.replace(": 2", ": 0"))
    with pytest.raises(CourseError, match=r"options.yaml, line \d+: TRAINER: AdaGRPO"):
        read_sweep(file)


def test_an_array_task_runs_its_one_case_and_the_table_is_made_at_the_end(
    folder, main, private_runs, monkeypatch
):
    file = saved(folder, GRID | {"cases": [{"RATE": 0.05}]})
    assert main(file, "--array", 4) == 0
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    assert main(file, "--array") == 0
    place = private_runs / "cpu" / "00_a"
    assert sorted(path.parent.name for path in place.glob("*/begun")) == [
        "rates+RATE=0.05",
        "rates+RATE=0.1+SEED=0",
    ]
    assert not (place / "rates.csv").exists()
    assert main(file, "--table") == 0
    table = pd.read_csv(place / "rates.csv").set_index("run")
    assert (table["status"] == "finished").sum() == 2
    assert table.loc["rates+RATE=0.05", "score"] == pytest.approx(0.05)


@pytest.mark.parametrize("index", ["5", "-1", "x", ""])
def test_an_array_index_that_is_no_case_is_refused(folder, main, index, capsys, monkeypatch):
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    assert main(saved(folder, GRID), f"--array={index}") == 1
    assert "--array takes a number from 0 to 3" in capsys.readouterr().err


def test_a_case_that_another_process_runs_is_left_to_it(folder, main, private_runs, capsys):
    file = saved(folder, {"notebook": "00", "cases": [{"SEED": 3}]})
    with held(private_runs / "cpu" / "00_a" / ".rates+SEED=3.lock", ""):
        assert main(file) == 1
    assert "another process runs it in" in capsys.readouterr().out
    assert main(file) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "notebook: '00'\ngrdi: {SEED: [1]}",
            r"rates.yaml, line 2: grdi is not known here; did you mean 'grid'",
        ),
        ("grid: {SEED: [1]}", "notebook is missing"),
        ("notebook: '00'", "nothing to run"),
        ("notebook: '00'\ngrid: {SEED: []}", "line 2: SEED has no values"),
        ("notebook: '00'\ngrid: {SEED: 1}", r"line 2: grid\['SEED'\] takes a list, got 1"),
        ("notebook: '00'\njobs: 0\ngrid: {SEED: [1]}", "line 2: jobs takes a whole number from 1, got 0"),
        (
            "notebook: '00'\ngrid:\n  RATE: [0.1]\n  SEDE: [1]",
            r"line 4: SEDE is not a parameter.*did you mean 'SEED'",
        ),
        (
            "notebook: '00'\ngrid:\n  RATE: [0.1, 1e-5]",
            r"line 3: RATE takes .* got '1e-5'. YAML reads 1e-5 as text",
        ),
        ("notebook: '00'\ncases:\n- SEED: 1\n- SEED: -1", r"line 4: SEED takes a whole .*got -1"),
        ("notebook: '00'\nset:\n  SEED: 1.5\ngrid: {RATE: [0.1]}", "line 3: SEED takes a whole number"),
        ("notebook: '00'\nset: {SEED: 1}\ngrid: {SEED: [1]}", "SEED stands under set as well"),
        ("notebook: '00'\ngrid: {RUN_NAME: [a]}", "RUN_NAME is made from the values"),
        ("notebook: '00'\ngrid: {PROFILE: [a]}", "PROFILE is chosen with --profile"),
        (
            "notebook: '00'\ngrid: {SEED: [1]}\ncases: [{SEED: 1}]",
            "two cases have the same values, {'SEED': 1}",
        ),
        ("notebook: '07'\ngrid: {SEED: [1]}", "no notebook '07'"),
        ("notebook: '00'\nprofile: smok\ngrid: {SEED: [1]}", "no profile 'smok'"),
        ("notebook: '00'\nnotebook: '01'", "notebook stands there twice"),
        ("- a", "expected lines like"),
    ],
)
def test_a_wrong_file_is_refused_before_anything_runs(folder, text, message, private_runs):
    with pytest.raises(CourseError, match=message):
        read_sweep(saved(folder, text), folder)
    assert not private_runs.exists()


def test_a_run_is_named_by_its_values_alone():
    assert run_name("lr", {"RATE": 1e-5, "ON": True}) == "lr+RATE=1e-05+ON=True"
    odd = [run_name("lr", {"LIST": value}) for value in ([1, 2], [12], ["1 2"])]
    assert len(set(odd)) == 3 and all(name.startswith("lr+LIST=.") for name in odd)
    long = [run_name("lr", {"TEXT": "a" * 200 + end}) for end in "bc"]
    assert len(set(long)) == 2 and all(len(name) < 140 for name in long)


def test_the_shipped_sweep_is_sound():
    shipped = read_sweep(ROOT / "notebooks" / "sweeps" / "rates.yaml")
    assert len(shipped.cases) == 4


def test_the_command_ends_with_1_and_one_sentence(tmp_path):
    words = [sys.executable, "-m", "lib.studies.sweep", "nowhere.yaml"]
    done = subprocess.run(words, env=os.environ | {"RUNS_DIR": str(tmp_path)}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "error: There is no file nowhere.yaml.\n")
