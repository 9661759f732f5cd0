"""The other side of `launch`: the process that starts the others, and each of those that do the work.

`python -m lib.engines.worker launch FOLDER` starts the workers, each `python -m lib.engines.worker FOLDER`.
The folder holds call.json; rank 0 writes result.json, or the launcher failure.json: who failed, and how.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed.run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record

from lib.engines.launch import LaunchError, as_json, find
from lib.runs import is_first_process, read_json, write_json

PATIENCE_S = 30  # for a worker to save, once there is nobody left to work for


def launch(folder: Path) -> int:
    """Start the workers of a call and wait for them."""
    _when_parent_ends(lambda: os._exit(1))  # the workers then see that theirs has ended
    error_file = folder / "error.json"
    os.environ["TORCHELASTIC_ERROR_FILE"] = str(error_file)  # for what accelerate starts without torchrun
    try:
        _start(read_json(folder / "call.json"), ["-m", "lib.engines.worker", str(folder)])
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        _keep_failure(folder, rank, failure.exitcode, failure.message)
        return 1
    except subprocess.CalledProcessError as failed:
        message = read_json(error_file)["message"] if error_file.exists() else str(failed)
        _keep_failure(folder, 0, failed.returncode, message)
        return 1
    return 0


def _start(call: Mapping[str, Any], worker: Sequence[str]) -> None:
    """Through torchrun, or through accelerate where the call names a config file of it."""
    if not call["accelerate_config"]:
        options = ["--standalone", f"--nproc_per_node={call['num_processes']}"]
        torch.distributed.run.run(torch.distributed.run.parse_args([*options, *worker]))
        return
    from accelerate.commands.launch import launch_command, launch_command_parser

    options = ["--config_file", call["accelerate_config"], f"--num_processes={call['num_processes']}"]
    launch_command(launch_command_parser().parse_args([*options, "--main_process_port=0", *worker]))


def _keep_failure(folder: Path, rank: int, exitcode: int, message: str | dict[str, Any]) -> None:
    """Who failed first; of an exception torch keeps the traceback, of a signal its name."""
    error = message if isinstance(message, str) else message["extraInfo"]["py_callstack"]
    write_json(folder / "failure.json", {"rank": rank, "exitcode": exitcode, "error": error})


def work(folder: Path) -> int:
    """Call the function as one of the processes; rank 0 writes result.json."""
    _when_parent_ends(_save_and_end)
    os.dup2(1, 2)  # the cell shows our warnings; what the launcher says of itself stays in its log
    if not is_first_process():
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    elif isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    try:
        _call(folder)
    except Exception:  # the launcher has its traceback
        return 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0


@record
def _call(folder: Path) -> None:
    call = read_json(folder / "call.json")
    _check_count(call["num_processes"])
    if torch.accelerator.is_available():  # before anything loads: all would fill the first device
        torch.accelerator.set_device_index(int(os.environ.get("LOCAL_RANK", "0")))
    if call["num_processes"] == 1 and not call["accelerate_config"]:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):  # alone, a model needs no wrapper for a group
            os.environ.pop(name, None)
    result = find(call["function"])(call["config"])
    if is_first_process():
        write_json(folder / "result.json", as_json(result, f"the result of {call['function']}"))


def _check_count(expected: int) -> None:
    """accelerate starts one process on a CPU, and says nothing, for most of its config files."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != expected:
        raise LaunchError(f"asked for {expected} processes, but the launcher started {started}")


def _when_parent_ends(act: Callable[[], None]) -> None:
    """A killed notebook must not leave training behind: look in a thread whether it is still there."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        act()

    threading.Thread(target=watch, daemon=True).start()


def _save_and_end() -> None:
    """Ask a trainer to save, as a scheduler does; nobody reads any more what it writes."""
    for descriptor in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE_S)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(launch(Path(sys.argv[2])) if sys.argv[1] == "launch" else work(Path(sys.argv[1])))
