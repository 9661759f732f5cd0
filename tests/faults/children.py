"""A training in a process of its own, forked from one that has the libraries loaded, and what befalls it."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "shutil.move")
PATIENCE = 120.0  # seconds for a training that takes three


@dataclass(frozen=True)
class Fault:
    """What happens at the `event`-th change to the file system below the run's folder, seen from inside.

    "kill": SIGKILL. "full": from then on no file can be made. "limit": no file grows beyond `size` bytes
    (Python ignores the signal for that, so writing fails).
    """

    how: str = ""
    event: int = 0
    size: int = 0


def start(
    training: str, folder: Path, model: str, changes: dict[str, Any] | None = None, fault: Fault = Fault()
) -> ForkServerProcess:
    """Begin one of `trainings.TRAININGS`; what it says goes to log.txt in the folder."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.trainings"])
    process = context.Process(target=_work, args=(training, str(folder), model, changes or {}, fault))
    process.start()
    return process


def ended(process: ForkServerProcess, within: float = PATIENCE) -> int | None:
    """Its exit code; None where it hangs, and is killed."""
    process.join(within)
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
    return code


def _work(training: str, folder: str, model: str, changes: dict[str, Any], fault: Fault) -> None:
    log = os.open(f"{folder}/log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout.reconfigure(line_buffering=True)
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGTERM, signal.SIG_DFL),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        signal.signal(number, handler)
    from .trainings import TRAININGS

    if fault.how:
        sys.addaudithook(_watcher(fault, folder))
    begun = time.monotonic()
    try:
        TRAININGS[training](Path(folder), model, changes)
        print(f"done after {time.monotonic() - begun:.2f} s")
    except BaseException:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)  # the log is a file too
        traceback.print_exc()
        os._exit(1)


def _watcher(fault: Fault, folder: str) -> Callable[[str, tuple], None]:
    """An audit hook that counts changes to files below a folder, and acts at the one that was named."""
    seen = 0

    def watch(event: str, given: tuple) -> None:
        nonlocal seen
        changes = event in CHANGES or (event == "open" and isinstance(given[2], int) and given[2] & WRITING)
        if (
            not changes
            or not given
            or not str(given[0]).startswith(folder)
            or str(given[0]).endswith("log.txt")
        ):
            return
        seen += 1
        if seen == fault.event and fault.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if seen == fault.event and fault.how == "limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (fault.size, resource.RLIM_INFINITY))
        if (
            seen >= fault.event
            and fault.how == "full"
            and event not in ("os.remove", "os.rmdir", "shutil.rmtree")
        ):
            raise OSError(28, "No space left on device", str(given[0]))

    return watch


def appears(pattern: str, folder: Path, process: ForkServerProcess) -> bool:
    """Wait until a path of this pattern is there, or the process has ended."""
    while process.exitcode is None and not any(folder.glob(pattern)):
        time.sleep(0.001)
    return process.exitcode is None
