"""Call a function of a module in fresh processes, or on a CPU in this one: same config, same result.

    run("lib.methods.sft:train", {"seed": 1}, num_processes=2)

Processes start through torchrun (see `worker`), since forking a notebook breaks CUDA and bitsandbytes. Config
and result pass through JSON files; what the processes write appears in the cell, line by line.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from lib.runs import read_json, write_json

SHOWN_LINES = 12


class LaunchError(RuntimeError):
    """The function cannot be started, or failed in one of the processes; the message says which and why."""


def run(
    function: str,
    config: Mapping[str, Any],
    *,
    num_processes: int = 1,
    accelerate_config: Path | str | None = None,
) -> dict[str, Any]:
    """The result of `function` ("module:name"), called with `config` in every process; rank 0's is returned.

    One process on a CPU is this one. Otherwise they are fresh, as an accelerator's memory shall be theirs
    (`policies.parked` clears it), and start through torchrun, or through accelerate with its config file
    (FSDP, DeepSpeed); a failure in one of them is a LaunchError. Only rank 0 prints.
    """
    call = find(function)
    config = as_json(config, f"the config of {function}")
    if num_processes < 1:
        raise LaunchError(f"num_processes must be 1 or more, got {num_processes}")
    if num_processes == 1 and accelerate_config is None and not torch.accelerator.is_available():
        return as_json(call(config), f"the result of {function}")
    _check_machine(num_processes, accelerate_config)
    with tempfile.TemporaryDirectory(prefix="launch-") as scratch:
        folder = Path(scratch)
        options = {"num_processes": num_processes, "accelerate_config": str(accelerate_config or "")}
        write_json(folder / "call.json", {"function": function, "config": config, **options})
        command = [sys.executable, "-m", "lib.engines.worker", "launch", scratch]
        code = _stream(command, folder / "launcher.log")
        if code == 0 and (folder / "result.json").exists():
            return as_json(read_json(folder / "result.json"), f"the result of {function}")
        raise LaunchError(_explain(function, num_processes, folder, code))


def find(function: str) -> Callable[[dict[str, Any]], Any]:
    """Import the function; every process does it, this one first, so that a wrong name starts nothing."""
    module, _, name = function.partition(":")
    if not module or not name:
        raise LaunchError(
            f"{function!r} names no function: write 'module:name', like 'lib.methods.sft:train'"
        )
    if module == "__main__":
        raise LaunchError(f"other processes cannot see {name}, a notebook's own function: put it in a module")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        if error.name and f"{module}.".startswith(f"{error.name}."):
            raise LaunchError(f"{function!r}: there is no module {error.name!r}") from None
        raise  # the module is there, but something that it imports is not
    if not callable(found):
        raise LaunchError(f"{function!r}: the module {module} has no function {name!r}")
    return found


def as_json(value: Any, what: str) -> dict[str, Any]:
    """A dict as JSON gives it back, in one process as in several: a tuple becomes a list."""
    if not isinstance(value, Mapping):
        raise LaunchError(f"{what} must be a dict, got {type(value).__name__}")
    try:
        return json.loads(json.dumps(dict(value)))
    except (TypeError, ValueError) as error:
        raise LaunchError(f"{what} must be JSON: {error}") from None


def _check_machine(num_processes: int, accelerate_config: Path | str | None) -> None:
    """Refuse what this machine cannot do."""
    devices = torch.accelerator.device_count() if torch.accelerator.is_available() else num_processes
    if num_processes > devices:
        raise LaunchError(
            f"num_processes={num_processes} needs as many devices, and this machine has {devices}; ask for "
            f"{devices} at most, or for the CPU by an empty CUDA_VISIBLE_DEVICES"
        )
    if accelerate_config is not None and not Path(accelerate_config).is_file():
        raise LaunchError(f"there is no accelerate config file {accelerate_config}")


def _environment() -> dict[str, str]:
    """This process's environment and import path; one thread each on a CPU, where more fight for cores."""
    threads = os.environ.get("OMP_NUM_THREADS", "1") if torch.accelerator.is_available() else "1"
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    return {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": path}


def _stream(command: list[str], log: Path) -> int:
    """Run the launcher, print what the processes write, and give its exit code. Nothing outlives the call."""
    with log.open("w", encoding="utf-8") as errors:
        launcher = subprocess.Popen(
            command,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on once
        )
    try:
        _show(launcher)
        return launcher.wait()
    except KeyboardInterrupt:
        launcher.send_signal(signal.SIGINT)
        _show(launcher)  # a trainer saves its checkpoint now; the launcher kills after 30 s, a Ctrl-C at once
        raise
    finally:
        launcher.kill()
        launcher.wait()
        if launcher.stdout:
            launcher.stdout.close()


def _show(launcher: subprocess.Popen[str]) -> None:
    for line in launcher.stdout or ():
        print(line, end="", flush=True)


def _explain(function: str, num_processes: int, folder: Path, code: int) -> str:
    """Say which process failed first, and how."""
    if code == 0:
        return f"{function} ended without a result: does it call sys.exit?"
    log, failure = (folder / "launcher.log").read_text(encoding="utf-8"), folder / "failure.json"
    if not failure.exists():
        return f"{function}: the launcher ended with code {code}:\n{_last_lines(log)}"
    first = read_json(failure)
    which = f"process {first['rank']} (of 0 to {num_processes - 1})" if num_processes > 1 else "its process"
    if first["exitcode"] < 0:
        name = signal.Signals(-first["exitcode"]).name
        hint = "; the system does so when memory runs out" if name == "SIGKILL" else ""
        return f"{function}: {which} was killed by {name}{hint}"
    return f"{function} failed in {which}:\n{_last_lines(first['error'])}"


def _last_lines(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-SHOWN_LINES:])
