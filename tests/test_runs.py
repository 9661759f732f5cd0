import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from lib import runs
from lib.runs import CheckpointError, RunFolderError, check_provenance, start_run, write_atomically


def test_a_run_folder_holds_config_metrics_and_result(private_runs):
    run = start_run("00_x", "cpu", {"SEED": 1})
    run.log(1, {"loss": 2.0})
    run.log(2, {"loss": 1.0})
    run.finish({"accuracy": 0.5})
    folder = private_runs / "cpu" / "00_x"
    assert json.loads((folder / "config.json").read_text()) == {"SEED": 1}
    assert [row["loss"] for row in run.metrics()] == [2.0, 1.0]
    assert json.loads((folder / "metrics.json").read_text()) == {"accuracy": 0.5}
    assert run.checkpoint == folder / "checkpoint"


def test_a_torn_last_line_is_left_out_and_rewinding_drops_what_comes_after():
    run = start_run("00_x", "cpu", {})
    for step in (10, 20, 30):
        run.log(step, {"loss": 1 / step})
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')
    assert [row["step"] for row in run.metrics()] == [10, 20, 30]
    run.rewind(20)
    run.log(30, {"loss": 0.5})
    assert [row["step"] for row in run.metrics()] == [10, 20, 30]


def test_a_damaged_line_in_the_middle_is_an_error_that_names_it():
    run = start_run("00_x", "cpu", {})
    (run.folder / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(RunFolderError, match=r"metrics.jsonl, line 2, is not JSON"):
        run.metrics()


def test_another_configuration_does_not_mix_with_the_old_one():
    old = start_run("00_x", "cpu", {"SEED": 1})
    old.log(1, {"loss": 1.0})
    assert start_run("00_x", "cpu", {"SEED": 1}).metrics() == old.metrics()  # the same one resumes
    assert start_run("00_x", "cpu", {"SEED": 2}).metrics() == []
    kept = list((old.folder / "previous").glob("*/metrics.jsonl"))
    assert len(kept) == 1


def test_a_failing_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "value.json"
    write_atomically(path, "old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runs.os, "fsync", full)
    with pytest.raises(RunFolderError, match=r"value.json: No space left on device. Free some space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["value.json"]


def test_a_disk_that_is_really_full_is_named(tmp_path):
    """The system's own limit on file size stands in for a full disk; a small first write still succeeds."""
    program = """
        import resource, signal
        from lib.runs import RunFolderError, start_run, write_json
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        run = start_run("00_x", "cpu", {})
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            run.finish({"much": "x" * 10_000})
        except RunFolderError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=os.environ | {"RUNS_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Cannot write" in done.stdout and "metrics.json: File too large" in done.stdout
    assert "RUNS_DIR" in done.stdout
    assert [p.name for p in (tmp_path / "cpu" / "00_x").iterdir()] == ["config.json"]


def test_a_run_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("RUNS_DIR", str(blocked))
    with pytest.raises(RunFolderError, match=r"Cannot write .*00_x.*make the folder writable.*RUNS_DIR"):
        start_run("00_x", "cpu", {})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into read-only folders")
def test_a_read_only_run_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNS_DIR", str(tmp_path))
    tmp_path.chmod(0o500)
    with pytest.raises(RunFolderError, match="Permission denied"):
        start_run("00_x", "cpu", {})


def test_a_killed_run_resumes_without_a_gap(tmp_path):
    program = """
        import sys, time
        from lib.runs import start_run
        run = start_run("00_x", "cpu", {})
        done = max([row["step"] for row in run.metrics()], default=0)
        run.rewind(done)
        for step in range(done + 1, 41):
            run.log(step, {"loss": 1 / step})
            time.sleep(0.02)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    environment = os.environ | {"RUNS_DIR": str(tmp_path)}
    child = subprocess.Popen(command, env=environment)
    path = tmp_path / "cpu" / "00_x" / "metrics.jsonl"
    while not path.exists() or len(path.read_text().splitlines()) < 5:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert len(path.read_text().splitlines()) < 40
    subprocess.run(command, env=environment, check=True)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == list(range(1, 41))


def test_provenance_is_checked_file_by_file(tmp_path):
    (tmp_path / "weights").write_bytes(b"12345")
    runs.write_provenance(tmp_path, seed=7)
    record = check_provenance(tmp_path)
    assert record["seed"] == 7 and record["versions"]["python"] and "commit" in record
    (tmp_path / "weights").write_bytes(b"12346")
    with pytest.raises(CheckpointError, match=r"weights is damaged.*git checkout"):
        check_provenance(tmp_path)
    (tmp_path / "weights").unlink()
    with pytest.raises(CheckpointError, match="weights is missing"):
        check_provenance(tmp_path)
    (tmp_path / "provenance.json").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        check_provenance(tmp_path)
