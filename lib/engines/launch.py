"""Call a function of a module in this process or in several, with the same config and the same result.

    run("lib.methods.sft:train", {"seed": 1}, num_processes=2)

Several processes start afresh through torchrun, since forking a notebook breaks CUDA and bitsandbytes.
Config and result pass through JSON files; what the processes write appears in the cell, line by line.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from lib.runs import read_json, write_json

SHOWN_LINES = 12
# What a process gets because another one failed; any other signal is itself the cause.
FOLLOWING = (signal.SIGTERM, signal.SIGINT, signal.SIGABRT)


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

    One process is this one. Several start through torchrun, or through accelerate with its config file
    (FSDP, DeepSpeed); a failure in one of them is a LaunchError. Only rank 0 prints.
    """
    call = _find(function)
    config = _as_json(config, f"the config of {function}")
    if num_processes < 1:
        raise LaunchError(f"num_processes must be 1 or more, got {num_processes}")
    if num_processes == 1 and accelerate_config is None:
        return _as_json(call(config), f"the result of {function}")
    command = _launcher(num_processes, accelerate_config)
    with tempfile.TemporaryDirectory(prefix="launch-") as scratch:
        folder = Path(scratch)
        write_json(
            folder / "call.json", {"function": function, "config": config, "num_processes": num_processes}
        )
        code = _stream([*command, "-m", "lib.engines.launch", scratch], folder / "launcher.log")
        if code != 0:
            raise LaunchError(_explain(function, num_processes, folder, code))
        return read_json(folder / "result.json")


def _find(function: str) -> Callable[[dict[str, Any]], Any]:
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


def _as_json(value: Any, what: str) -> dict[str, Any]:
    """A dict as JSON gives it back, in one process as in several: a tuple becomes a list."""
    if not isinstance(value, Mapping):
        raise LaunchError(f"{what} must be a dict, got {type(value).__name__}")
    try:
        return json.loads(json.dumps(dict(value)))
    except (TypeError, ValueError) as error:
        raise LaunchError(f"{what} must be JSON: {error}") from None


def _launcher(num_processes: int, accelerate_config: Path | str | None) -> list[str]:
    """The command that starts the processes; checks what can be known before."""
    if torch.accelerator.is_available() and num_processes > torch.accelerator.device_count():
        raise LaunchError(
            f"{num_processes} processes need {num_processes} devices, there are "
            f"{torch.accelerator.device_count()}; to use the CPU set CUDA_VISIBLE_DEVICES to nothing"
        )
    if accelerate_config is None:
        return [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc_per_node={num_processes}",
        ]
    if not Path(accelerate_config).is_file():
        raise LaunchError(f"there is no accelerate config file {accelerate_config}")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(accelerate_config)]
    return [*command, f"--num_processes={num_processes}", "--main_process_port=0"]


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
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on once
        )

    def let_go() -> None:
        """When the launcher is gone, close the input that its processes hold on to (see `main`)."""
        launcher.wait()
        if launcher.stdin:
            launcher.stdin.close()

    threading.Thread(target=let_go, daemon=True).start()
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
    log = (folder / "launcher.log").read_text(encoding="utf-8")
    for rank, number in re.findall(r"rank\s*: (\d+) .*\n\s*exitcode\s*: -(\d+)", log):
        if int(number) not in FOLLOWING:
            name = signal.Signals(int(number)).name
            hint = "; the system does so when memory runs out" if name == "SIGKILL" else ""
            return f"{function}: process {rank} (of 0 to {num_processes - 1}) was killed by {name}{hint}"
    failure = folder / "failure.json"
    if failure.exists():
        first = read_json(failure)
        where = f"in process {first['rank']} (of 0 to {num_processes - 1})"
        return f"{function} failed {where}:\n{_last_lines(first['traceback'])}"
    return f"{function}: the launcher ended with code {code}:\n{_last_lines(log)}"


def _last_lines(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-SHOWN_LINES:])


# ---- one of several processes ------------------------------------------------------------------


def main(folder: Path) -> int:
    """Call the function as one of the processes that `run` started; rank 0 writes result.json."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    rank = int(os.environ.get("RANK", "0"))
    os.dup2(1, 2)  # the cell shows our warnings; what the launcher says of itself stays in its log
    if rank:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    elif isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    call = read_json(folder / "call.json")
    try:
        _check_count(call["num_processes"])
        result = _find(call["function"])(call["config"])
        if rank == 0:
            write_json(folder / "result.json", _as_json(result, f"the result of {call['function']}"))
    except BaseException:  # SystemExit too: a process that left early has no result
        _record_failure(folder / "failure.json", rank)
        return 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0


def _end_with_parent() -> None:
    """End this process when its input closes: a killed notebook kernel must not leave training behind."""
    os.read(0, 1)
    os._exit(1)


def _check_count(expected: int) -> None:
    """accelerate starts one process on a CPU, and says nothing, for most of its config files."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != expected:
        raise LaunchError(f"asked for {expected} processes, but the launcher started {started}")


def _record_failure(path: Path, rank: int) -> None:
    """Keep the traceback of the first process that fails: the others fail for want of it."""
    try:
        with path.open("x", encoding="utf-8") as file:
            json.dump({"rank": rank, "traceback": traceback.format_exc()}, file)
    except FileExistsError:
        pass


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
