import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from pyarrow import parquet

from lib import runs
from lib.formats import ReasoningFormat
from lib.runs import CheckpointError, RunFolderError, check_provenance, start_run, write_atomically
from lib.tasks import Rollout
from lib.writing import KeptLines, read_json


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


def test_numbers_for_the_text_are_kept_until_the_notebook_starts_again():
    run = start_run("00_x", "cpu", {"SEED": 1})
    run.quote(saving={"all": 0.31}, tokens=np.float32(41.5))
    run.quote(saving={"easy": np.int64(2)}, depth={7: {"direct": 0.2}}, nothing=math.nan)
    quoted = {"saving": {"all": 0.31, "easy": 2}, "tokens": 41.5, "depth": {"7": {"direct": 0.2}}}
    assert json.loads((run.folder / "numbers.json").read_text()) == quoted
    run.quote(saving={"all": 0.29})
    assert json.loads((run.folder / "numbers.json").read_text())["saving"] == {"all": 0.29, "easy": 2}
    start_run("00_x", "cpu", {"SEED": 1})
    assert not (run.folder / "numbers.json").exists()


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"saving": {"all": "0.31"}}, "quote: saving.all must be a number, got '0.31'"),
        ({"right": True}, "quote: right must be a number, got True"),
        ({"rate": {0.5: 1}}, "quote: 'rate.0.5' cannot be looked up"),
    ],
)
def test_only_numbers_can_be_quoted(numbers, message):
    run = start_run("00_x", "cpu", {})
    with pytest.raises(ValueError, match=message):
        run.quote(**numbers)
    assert not (run.folder / "numbers.json").exists()


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


@pytest.mark.parametrize("damage", [b'{"step": \xff}', b"[" * 100_000, b"", b"\x00" * 16])
def test_a_file_is_named_however_it_is_damaged(damage, tmp_path):
    """Bytes that are no UTF-8, and nesting without an end, came through as Python's own errors."""
    rows, value = tmp_path / "rows.jsonl", tmp_path / "value.json"
    rows.write_bytes(b"{}\n" + damage + b"\n{}\n")
    value.write_bytes(damage)
    with pytest.raises(RunFolderError, match=r"rows.jsonl, line 2, is not JSON .* Delete that line"):
        KeptLines(rows).read()
    with pytest.raises(RunFolderError, match=r"value.json is not JSON .* Delete it"):
        read_json(value)


def test_another_configuration_does_not_mix_with_the_old_one():
    old = start_run("00_x", "cpu", {"SEED": 1})
    old.log(1, {"loss": 1.0})
    assert start_run("00_x", "cpu", {"SEED": 1}).metrics() == old.metrics()  # the same one resumes
    old.finish({"accuracy": 0.5})
    new = start_run("00_x", "cpu", {"SEED": 2})
    assert not (new.folder / "metrics.json").exists()
    assert len(list((old.folder / "previous").glob("*/metrics.json"))) == 1


@pytest.mark.parametrize("name", ["", "lr=2"])
@pytest.mark.parametrize("steps", range(6))
def test_a_kill_leaves_no_results_under_another_configuration(steps, name, monkeypatch):
    """Killed at each rename, those that write config.json included; either configuration may follow."""
    old = start_run("00_x", "cpu", {"LR": 1}, name)
    old.finish({"rate": 1})
    old.quote(rate=1)
    write_atomically(old.folder / "rollouts" / "test.parquet", "1")
    left = [steps]

    def until_killed(rename):
        def renamed(path, target):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return rename(path, target)

        return renamed

    with monkeypatch.context() as patched:
        for how in ("rename", "replace"):
            patched.setattr(runs.Path, how, until_killed(getattr(runs.Path, how)))
        with contextlib.suppress(KeyboardInterrupt):
            start_run("00_x", "cpu", {"LR": 2}, name)

    results = ("metrics.json", "numbers.json", "rollouts")

    def there():
        return [result for result in results if (old.folder / result).exists()]

    now = json.loads((old.folder / "config.json").read_text())
    assert now == {"LR": 1} or there() in ([], ["numbers.json"]), "the new one's results are not there yet"
    new = start_run("00_x", "cpu", {"LR": 2}, name)
    assert json.loads((new.folder / "config.json").read_text()) == {"LR": 2} and there() == []
    kept = [place for place in (old.folder / "previous").iterdir() if any(place.iterdir())]
    assert all(json.loads((place / "config.json").read_text()) == {"LR": 1} for place in kept)
    assert sorted(p.name for place in kept for p in place.iterdir() if p.name != "config.json") == [*results]


def test_a_run_name_tells_the_runs_of_a_sweep_apart(private_runs):
    plain, first, second = (
        start_run("00_x", "cpu", {"SEED": 1}, name) for name in ("", "lr=1e-4", "lr=2e-4")
    )
    assert first.folder == private_runs / "cpu" / "00_x" / "lr=1e-4"
    first.log(1, {"loss": 1.0})
    assert plain.metrics() == second.metrics() == []
    assert start_run("00_x", "cpu", {"SEED": 1}, "lr=1e-4").metrics() == first.metrics()


@pytest.mark.parametrize("name", ["../other", "a/b", ".hidden", "checkpoint", "two words"])
def test_a_run_name_cannot_reach_another_folder(name):
    run = start_run("00_x", "cpu", {})
    write_atomically(run.checkpoint / "weights", "")
    with pytest.raises(ValueError, match="RUN_NAME"):
        start_run("00_x", "cpu", {}, name)


@pytest.mark.parametrize("name", ["checkpoint", "Previous", "rollouts", "result", "grpo", "metrics.json"])
def test_a_run_is_not_called_what_a_run_folder_holds(name):
    """checkpoint/config.json passed for a run's, and the next claim moved that run away with the other's."""
    run = start_run("00_x", "cpu", {})
    trained(run, {"rate": 1}, 1)
    with pytest.raises(ValueError, match=r"letters, digits and _ . = \+ -, but neither .*checkpoint, .*got"):
        start_run("00_x", "cpu", {"LR": 2}, name)
    assert run.claim({"rate": 1}) == {"marker": 1}


def test_without_git_a_run_names_no_commit(monkeypatch, tmp_path):
    """A ZIP on a small image: every notebook ended in its set-up cell."""
    monkeypatch.setenv("PATH", str(tmp_path))
    runs._code_version.cache_clear()
    try:
        start_run("00_x", "cpu", {})
        assert runs.provenance()["commit"] is None
    finally:
        runs._code_version.cache_clear()


# ---- what was trained -----------------------------------------------------------------------------


def trained(run, settings, marker):
    """Train as a trainer does: a log, a checkpoint, a result."""
    assert run.claim(settings) is None
    run.log(1, {"loss": marker})
    write_atomically(run.checkpoint / "checkpoint-1" / "weights", str(marker))
    run.keep({"marker": marker})


def test_the_same_settings_find_what_was_trained(capsys):
    run = start_run("00_x", "cpu", {})
    trained(run, {"learning_rate": 0.1, "heads": ("a", "b")}, 1)
    assert run.claim({"heads": ["a", "b"], "learning_rate": 0.1}, say=print) == {"marker": 1}
    assert "trained before, on 20" in capsys.readouterr().out
    assert json.loads((run.checkpoint / "config.json").read_text())["learning_rate"] == 0.1


def test_other_settings_never_meet_the_checkpoints_of_the_last(capsys):
    run = start_run("00_x", "cpu", {})
    trained(run, {"learning_rate": 0.1, "rows": "abc"}, 1)
    assert run.claim({"learning_rate": 0.2, "rows": "abc"}, say=print) is None
    said = capsys.readouterr().out
    assert "learning_rate 0.2, was 0.1" in said and "previous" in said and "rows" not in said
    assert run.metrics() == [] and [p.name for p in run.checkpoint.iterdir()] == ["config.json"]
    trained(run, {"learning_rate": 0.2, "rows": "abc"}, 2)
    assert run.claim({"learning_rate": 0.1, "rows": "abc"}) == {"marker": 1}, "what was set aside comes back"
    assert (run.checkpoint / "checkpoint-1" / "weights").read_text() == "1"
    assert [row["loss"] for row in run.metrics()] == [1]
    assert run.claim({"learning_rate": 0.2, "rows": "abc"}) == {"marker": 2}


@pytest.mark.parametrize("moves", range(5))
@pytest.mark.parametrize("back", [1, 2])
def test_a_kill_between_two_moves_separates_no_log_from_its_checkpoint(moves, back, monkeypatch):
    """Settings 1 are finished, then 2, then 1 again: killed after some moves, and followed by either."""
    run, left, rename = start_run("00_x", "cpu", {}), [moves], runs.Path.rename

    def until_killed(path, target):
        if path.suffix != ".json" and not path.name.startswith("."):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
        return rename(path, target)

    trained(run, {"rate": 1}, 1)
    trained(run, {"rate": 2}, 2)
    monkeypatch.setattr(runs.Path, "rename", until_killed)
    with contextlib.suppress(KeyboardInterrupt):
        run.claim({"rate": 1})
    monkeypatch.undo()
    monkeypatch.setenv("RUNS_DIR", str(run.folder.parents[1]))
    for marker in (back, 3 - back, back):
        assert run.claim({"rate": marker}) == {"marker": marker}
        assert (run.checkpoint / "checkpoint-1" / "weights").read_text() == str(marker)
        assert [row["loss"] for row in run.metrics()] == [marker]


def test_a_checkpoint_that_does_not_say_its_settings_is_set_aside():
    run = start_run("00_x", "cpu", {})
    write_atomically(run.checkpoint / "checkpoint-1" / "weights", "of an older version")
    assert run.claim({"learning_rate": 0.1}) is None
    assert not (run.checkpoint / "checkpoint-1").exists()
    assert len(list((run.folder / "previous").glob("*/checkpoint/checkpoint-1"))) == 1


def test_two_processes_cannot_train_in_one_folder():
    run = start_run("00_x", "cpu", {})
    refused = pytest.raises(RunFolderError, match=r"Another process trains in .*RUN_NAME")
    with run.alone(), refused, run.alone():
        pass
    with run.alone():
        pass


def test_the_other_processes_wait_for_the_first(monkeypatch):
    run = start_run("00_x", "cpu", {})
    main = threading.main_thread()
    monkeypatch.setattr(runs, "is_first_process", lambda: threading.current_thread() is main)
    waiting = threading.Thread(target=run.claim, args=({"seed": 1},))
    waiting.start()
    time.sleep(0.3)
    assert waiting.is_alive() and not run.checkpoint.exists()
    assert run.claim({"seed": 1}) is None
    waiting.join(timeout=60)
    assert not waiting.is_alive()


def test_settings_that_move_while_they_are_read_are_not_there_yet(monkeypatch):
    """Of several processes, one asked whether they exist, and read them after the first had moved them."""
    run = start_run("00_x", "cpu", {})
    trained(run, {"seed": 1}, 1)
    read, moved = runs.Path.read_bytes, []

    def too_late(path):
        if path == run.checkpoint / "config.json" and not moved:
            moved.append(path.rename(path.with_name("moved")))
        return read(path)

    monkeypatch.setattr(runs.Path, "read_bytes", too_late)
    assert run._settings() == {} and moved


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
    whole = (tmp_path / "provenance.json").read_text()
    for torn in ("", whole[:40], "[]", "{}", '{"sha256": 3}', "[" * 100_000, "\udc80"):
        (tmp_path / "provenance.json").write_bytes(torn.encode(errors="surrogateescape"))
        with pytest.raises(CheckpointError, match=r"provenance\.json is damaged.*git checkout"):
            check_provenance(tmp_path)
    (tmp_path / "provenance.json").write_text(whole)
    (tmp_path / "weights").write_bytes(b"12346")
    with pytest.raises(CheckpointError, match=r"weights is damaged.*git checkout"):
        check_provenance(tmp_path)
    (tmp_path / "weights").unlink()
    with pytest.raises(CheckpointError, match="weights is missing"):
        check_provenance(tmp_path)
    (tmp_path / "provenance.json").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        check_provenance(tmp_path)


def kept_rollouts(run):
    rows = parquet.ParquetFile(run.folder / "rollouts" / "test.parquet").read().to_pylist()
    return [Rollout(**row) for row in rows]


def test_rollouts_are_kept_and_read(private_runs):
    run = runs.start_run("nb", "cpu", {"seed": 0})
    facts = {"method": "m", "mode": "code", "format": ReasoningFormat.CODE, "answer": "3", "correct": True}
    texts = ("<CODE>\n\u2028 3", "no\x85 end\n")
    rollouts = [
        Rollout("t/1", sample=i, seed=0, text=text, tokens=9, truncated=False, **facts)
        for i, text in enumerate(texts)
    ]
    for kept in (rollouts, []):
        run.keep_rollouts("test", kept)
        assert kept_rollouts(run) == kept
    odd = replace(rollouts[0], text="cut \ud83d", answer=None, format=None, agreed=True)
    run.keep_rollouts("test", [odd])
    (read,) = kept_rollouts(run)
    assert (read.text, read.answer, read.agreed, read.truncated) == ("cut ?", None, True, False)
    runs.start_run("nb", "cpu", {"seed": 1})
    assert not (run.folder / "rollouts").exists(), "another configuration has rollouts of its own"
