"""Notebooks and solutions run from top to bottom, at the smoke profile, away from the real run folder."""

import json
import os
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from lib.course.notebooks import choose, find_notebooks, find_solutions
from lib.course.runner import run_course

SMOKE = os.environ.get("SMOKE", "03 06").split()  # SMOKE="": all, which make course runs in full


@pytest.mark.slow
@pytest.mark.parametrize("path", choose(find_notebooks(), SMOKE, None), ids=lambda path: path.stem)
def test_a_notebook_runs_at_the_smoke_profile(path, private_runs):
    outcomes = run_course(profile="smoke", only=[path.stem])
    assert [outcome.status for outcome in outcomes] == ["ok"]
    folder = private_runs / "smoke" / path.stem
    assert {"config.json", "metrics.json", path.name} <= {entry.name for entry in folder.iterdir()}
    assert json.loads((folder / "config.json").read_text())["PROFILE"] == "smoke"
    assert json.loads((folder / "metrics.json").read_text())


@pytest.mark.slow
def test_notebook_01_builds_its_set_from_rows_of_a_dataset_too(tmp_path, private_runs):
    """The same cells, with GSM8K rows from a local file in place of the dial world."""
    file = tmp_path / "gsm8k_train.jsonl"
    texts = [(f"Ann has {n} pens and buys {n + 3}. How many has she?", 2 * n + 3) for n in range(40)]
    rows = [{"question": question, "answer": f"It is {a}.\n#### {a}"} for question, a in texts]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"TRAIN_SOURCES": ["gsm8k"], "DATA_FOLDER": str(tmp_path)}
    outcomes = run_course(profile="smoke", only=["01"], overrides=source)
    assert [outcome.status for outcome in outcomes] == ["ok"]
    saved = private_runs / "smoke" / "01_data_formatting" / "sft_set" / "sft.jsonl"
    kept = [json.loads(line) for line in saved.read_text().splitlines()]
    assert {row["source"] for row in kept} == {"gsm8k"}
    assert {row["format"] for row in kept} == {"direct", "short_cot"}  # what GSM8K has
    assert 0 < len(kept) <= 80


@pytest.mark.slow
@pytest.mark.parametrize("path", find_solutions(), ids=lambda path: path.stem)
def test_solutions_run(path, tmp_path):
    command = [sys.executable, "-m", "papermill", str(path), str(tmp_path / "out.ipynb")]
    done = subprocess.run(
        [
            *command,
            "-p",
            "COUNT",
            "20",
            "-p",
            "STEPS",
            "10",
            "-k",
            "python3",
            "--no-progress-bar",
            "--log-level",
            "ERROR",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_corrupt_checkpoint_stops_the_course_with_its_name(tmp_path, monkeypatch, capsys, private_runs):
    """The failing cell is named, with the damaged file and the remedy."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.safetensors").write_bytes(b"nonsense")
    (broken / "provenance.json").write_text('{"sha256": {"model.safetensors": "0"}}')
    folder = tmp_path / "notebooks"
    folder.mkdir()
    cells = [
        new_code_cell(f'PATH: str = "{broken}"  # where', metadata={"tags": ["parameters"]}),
        new_code_cell("from lib.policies import load_policy\n\nload_policy(PATH)"),
    ]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=metadata), folder / "00_broken.ipynb")
    assert run_course(folder=folder)[0].status == "failed"
    said = capsys.readouterr().out
    assert "00_broken  FAILED in cell 2" in said and "model.safetensors is damaged" in said
    assert "git checkout" in said
