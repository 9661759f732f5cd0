"""Stopping the course: nothing outlives its runner, and a training in a cell saves first."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_notebook, writes

TRAINS = """\
import os, pathlib, time
folder = pathlib.Path(FOLDER)
(folder / "kernel.pid").write_text(str(os.getpid()))
try:
    time.sleep(300)
finally:
    time.sleep(1)
    (folder / "saved").touch()
"""
STUBBORN = TRAINS.replace("try:", "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\ntry:")
GOES_ON = "(folder / 'went on').touch()"
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
RUNNER = """\
import pathlib, sys, threading
from lib.course.execute import papermill
stop, folder = threading.Event(), pathlib.Path(sys.argv[1])
try:
    papermill(folder / "train.ipynb", folder / "out" / "train.ipynb", 0.0, stop)
finally:
    stop.set()
"""


def begin(folder, cell=TRAINS):
    """A runner with a notebook whose first cell trains: it, papermill's process and the kernel's."""
    (folder / "out").mkdir()
    cells = [new_code_cell('FOLDER = ""', metadata={"tags": ["parameters"]}), new_code_cell(cell)]
    notebook = new_notebook(cells=[*cells, new_code_cell(GOES_ON)], metadata={"kernelspec": KERNEL})
    (folder / "train.ipynb").write_text(writes(notebook))
    (folder / "out" / "parameters.yaml").write_text(yaml.safe_dump({"FOLDER": str(folder)}))
    # Under nohup the tests themselves ignore SIGHUP, and hand that on.
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)}
    runner = subprocess.Popen([sys.executable, "-c", RUNNER, str(folder)], **heard)
    wait_for((folder / "kernel.pid").exists, 60)
    time.sleep(0.5)
    kernel = psutil.Process(int((folder / "kernel.pid").read_text()))
    return runner, kernel.parent(), kernel


def wait_for(happens, seconds):
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline, "it has not happened in time"
        time.sleep(0.1)


def ended(process):
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


slow = pytest.mark.slow
ENDS = [signal.SIGKILL, *(pytest.param(number, marks=slow) for number in (signal.SIGTERM, signal.SIGHUP))]


@pytest.mark.parametrize("how", ENDS)
def test_when_the_runner_ends_the_cell_saves_and_nothing_is_left(how, tmp_path):
    runner, *others = begin(tmp_path)
    runner.send_signal(how)
    wait_for(lambda: all(map(ended, others)), 30)
    assert (tmp_path / "saved").exists() and not (tmp_path / "went on").exists()
    assert "KeyboardInterrupt" in (tmp_path / "out" / "train.ipynb").read_text()
    runner.wait(5)


@slow
def test_a_second_signal_does_not_wait(tmp_path):
    runner, papermill, kernel = begin(tmp_path, STUBBORN)
    papermill.send_signal(signal.SIGTERM)
    time.sleep(2)
    assert not ended(kernel)
    papermill.send_signal(signal.SIGTERM)
    wait_for(lambda: ended(papermill) and ended(kernel), 30)
    assert not (tmp_path / "saved").exists()
    runner.wait(5)


@slow
def test_a_killed_papermill_takes_its_kernel_with_it(tmp_path):
    runner, papermill, kernel = begin(tmp_path)
    papermill.kill()
    wait_for(lambda: ended(kernel), 30)
    assert not (tmp_path / "went on").exists()
    runner.wait(5)


@slow
def test_ctrl_c_to_the_course_is_passed_on_once(tmp_path):
    """The terminal sends it to the whole group; the notebook's process hears of it from the runner alone."""
    runner, *others = begin(tmp_path)
    assert all(os.getpgid(process.pid) != os.getpgid(runner.pid) for process in others)
    runner.kill()
    wait_for(lambda: all(map(ended, others)), 30)
    assert (tmp_path / "saved").exists()


SLOW_TO_START = """\
import signal, sys, time
from pathlib import Path
folder = Path(sys.argv.pop(1))
signal.signal(signal.SIGINT, lambda *_: (folder / "interrupted").touch())
time.sleep(2)
from ipykernel.kernelapp import launch_new_instance
launch_new_instance()
"""


def test_papermill_whose_runner_ended_while_it_was_imported_runs_no_cell(tmp_path):
    """Nor is the kernel interrupted while it starts: some then hung until papermill's minute was over."""
    kernel = tmp_path / "kernels" / "python3"
    kernel.mkdir(parents=True)
    words = [sys.executable, "-c", SLOW_TO_START, str(tmp_path), "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": words, **KERNEL}))
    cells = [new_code_cell(f"open({str(tmp_path / 'ran')!r}, 'w')")]
    (tmp_path / "a.ipynb").write_text(writes(new_notebook(cells=cells, metadata={"kernelspec": KERNEL})))
    (tmp_path / "parameters.yaml").write_text("{}")
    words = [str(tmp_path / name) for name in ("a.ipynb", "out.ipynb", "parameters.yaml")]
    command = [sys.executable, "-m", "lib.course.stoppable", *words, "1"]
    done = subprocess.run(command, timeout=100, env={**os.environ, "JUPYTER_PATH": str(tmp_path)})
    assert done.returncode == 1 and not (tmp_path / "ran").exists()
    assert not (tmp_path / "interrupted").exists()
