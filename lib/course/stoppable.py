"""`python -m lib.course.stoppable NOTEBOOK OUTPUT PARAMETERS PARENT`: papermill, stopped without loss.

A signal, or the end of its PARENT process, interrupts the running cell as a reader's stop button does: a
training finishes its step and saves. No further cell begins. A second signal does not wait. A kernel that
is still being imported is left in peace: interrupted there, it may neither end nor ever be ready.

The kernel is spoken to through files: of many that start at once, two may choose the same network port.
"""

import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import papermill
import psutil
import yaml
from papermill.engines import NBClientEngine, papermill_engines
from papermill.execute import PapermillExecutionError
from traitlets.config import Config

_begun = threading.Event()  # the kernel is ready, and the first cell about to run
_stopped = threading.Event()


class StoppedError(RuntimeError):
    """The run was stopped between two cells, where a kernel does not hear of it."""


class Stoppable(NBClientEngine):
    """papermill's engine, which begins no cell once the run is stopped."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **options: Any) -> None:
        begin = nb_man.cell_start

        def cell_start(cell: Any, index: int) -> None:
            _begun.set()
            if _stopped.is_set():
                raise StoppedError(f"stopped before cell {index + 1}")
            begin(cell, index)

        nb_man.cell_start = cell_start
        with tempfile.TemporaryDirectory(prefix="kernel-") as folder:  # a socket's path must be short
            place = {"transport": "ipc", "connection_file": f"{folder}/kernel.json"}
            options["config"] = Config(KernelManager=place)
            super().execute_managed_notebook(nb_man, kernel_name, **options)


def main(notebook: str, output: str, parameters: str, parent: str) -> int:
    """Execute the notebook in a thread, for this one hears signals; 0 when all cells ran."""
    papermill_engines.register("stoppable", Stoppable)
    codes: list[int] = []

    def work() -> None:
        given = yaml.safe_load(Path(parameters).read_text(encoding="utf-8"))
        options = {"kernel_name": "python3", "cwd": str(Path(notebook).parent), "progress_bar": False}
        try:
            papermill.execute_notebook(notebook, output, given, engine_name="stoppable", **options)
            codes.append(0)
        except (PapermillExecutionError, StoppedError) as error:
            print(error, file=sys.stderr)

    worker = threading.Thread(target=work, daemon=True)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    worker.start()
    while worker.is_alive():
        worker.join(0.5)
        if os.getppid() != int(parent) and not _stopped.is_set():
            _stop()
    return 0 if codes else 1


def _stop(*_: Any) -> None:
    """Interrupt the kernel; the second time, end it."""
    how = signal.SIGKILL if _stopped.is_set() else signal.SIGINT
    _stopped.set()
    if _begun.is_set() or how == signal.SIGKILL:
        for kernel in psutil.Process().children():
            kernel.send_signal(how)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
