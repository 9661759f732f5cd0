"""Execute one notebook in a process of its own (`stoppable`), and say where it failed."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat

from lib.course.notebooks import clock, own_cells
from lib.runs import peak_memory_mb

_running: dict[str, str] = {}  # folder of a run: how far it is


def papermill(path: Path, output: Path, expected: float, stop: threading.Event) -> tuple[int, float, float]:
    """Run papermill with the parameters beside `output` until `stop`: exit code, seconds, peak MB."""
    words = [sys.executable, "-m", "lib.course.stoppable", str(path), str(output)]
    words += [str(output.parent / "parameters.yaml"), str(os.getpid())]
    begun, told = time.monotonic(), False
    with (output.parent / "papermill.log").open("w") as log:
        # A session of its own: Ctrl-C reaches this process alone, which passes it on once.
        child = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)
        while True:
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
            if pid:
                break
            if stop.is_set() and not told:
                told = True
                child.terminate()
            _live(output.parent.name, time.monotonic() - begun, expected)
            time.sleep(0.5)
    child.returncode = os.waitstatus_to_exitcode(status)
    _live_end(output.parent.name)
    return child.returncode, time.monotonic() - begun, peak_memory_mb(usage)


def explain_failure(name: str, output: Path, code: int) -> str:
    """Say which cell failed, with its first line and the last lines of the error."""
    try:
        cells = list(own_cells(nbformat.read(output, as_version=4)))
    except Exception:  # not begun, or torn: the log says more
        cells = []
    for number, cell in enumerate(cells, start=1):
        for shown in cell.get("outputs", []):
            if shown.output_type == "error":
                first = cell.source.strip().splitlines()[0]
                what = f"{name}  FAILED in cell {number} ({first}):\n    {shown.ename}: {shown.evalue}"
                kept = f"The executed notebook, with the traceback, is {output}. What was finished is kept"
                return f"{what}\n{kept}; mend the cause and run the same command again."
    log = (output.parent / "papermill.log").read_text(encoding="utf-8")
    tail = "\n    ".join(log.strip().splitlines()[-5:])
    return f"{name}  FAILED before or outside a cell (papermill ended with code {code}):\n    {tail}"


def _live(name: str, elapsed: float, expected: float) -> None:
    """The one line that moves while notebooks run; only where somebody watches."""
    if sys.stdout.isatty():
        left = f"about {clock(max(0.0, expected - elapsed))} left" if expected else "no estimate yet"
        _running[name] = f"{name}  {clock(elapsed)} elapsed, {left}"
        print(f"\r\033[K{'   '.join(list(_running.values()))}", end="", flush=True)


def _live_end(name: str) -> None:
    _running.pop(name, None)
    if sys.stdout.isatty():
        print("\r\033[K", end="", flush=True)
