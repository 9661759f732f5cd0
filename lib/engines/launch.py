"""Call a function of a module in fresh processes, or on a CPU in this one: same config, same result.

    run("lib.methods.sft:train", {"seed": 1}, num_processes=8, accelerate_config="fsdp2")

Processes start through accelerate and torchrun (see `worker`), since forking a notebook breaks CUDA and
bitsandbytes. Config and result pass through JSON files; what the processes write appears in the cell, line by
line. Several machines are found in the environment (see `nodes`).
"""

import importlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import torch
import yaml

from lib.checked import close
from lib.engines.nodes import Nodes, this_node
from lib.runs import ROOT, read_json, write_json

SHOWN_LINES = 12
HINTS = {
    "SIGKILL": "; the system does so when memory runs out",
    "SIGTERM": "; a training has saved its last step, and the same call goes on from there",
}
CONFIGURATIONS = ROOT / "notebooks" / "profiles" / "accelerate"
_calls = count(1)  # over several machines


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

    `num_processes` counts all, over all machines. `accelerate_config` says how they share a model: a file of
    accelerate's, or the name of one of notebooks/profiles/accelerate: ddp (the default), fsdp2, zero2, zero3.
    One process on a CPU is this one. Otherwise they are fresh, as an accelerator's memory shall be theirs
    (`policies.parked` clears it); a failure in one of them is a LaunchError. Only rank 0 prints.
    """
    call = find(function)
    config = as_json(config, f"the config of {function}")
    if num_processes < 1:
        raise LaunchError(f"num_processes must be 1 or more, got {num_processes}")
    alone = num_processes == 1 and not accelerate_config
    if alone and not torch.accelerator.is_available():
        return as_json(call(config), f"the result of {function}")
    nodes = this_node() if num_processes > 1 else Nodes()
    file = configuration(accelerate_config or "ddp")
    _check_machine(num_processes, nodes)
    told = {"function": function, "config": config, "num_processes": num_processes, "nodes": nodes.machines}
    with tempfile.TemporaryDirectory(prefix="launch-") as scratch:
        folder = nodes.folder(next(_calls)) if nodes.machines > 1 else Path(scratch)
        if nodes.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)  # of an earlier job
            write_json(folder / "call.json", told | {"accelerate_config": str(file), "alone": alone})
        command = [sys.executable, "-m", "lib.engines.worker", "launch", str(folder), str(os.getpid())]
        log = Path(scratch, "launcher.log")
        code = _stream(command, log) if _appears(folder / "call.json", 600) else 1
        if code == 0 and _appears(folder / "result.json", 60 if nodes.rank else 0):
            return as_json(read_json(folder / "result.json"), f"the result of {function}")
        raise LaunchError(_explain(function, num_processes, folder, log, code))


def _appears(path: Path, seconds: float) -> bool:
    """Whether a file is there, or comes to be: the first machine writes it, and others see it later."""
    deadline = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.5)
    return path.exists()


def configuration(name: Path | str) -> Path:
    """The file of an accelerate configuration, by name or path; LaunchError for one that cannot work."""
    file = Path(name) if Path(name).suffix else CONFIGURATIONS / f"{name}.yaml"
    if not file.is_file():
        known = sorted(path.stem for path in CONFIGURATIONS.glob("*.yaml"))
        raise LaunchError(
            f"there is no accelerate config file {str(name)!r}{close(str(name), known) or '.'} There are "
            f"{', '.join(known)}; or give the path of one"
        )
    given = yaml.safe_load(file.read_text(encoding="utf-8"))
    kind = given.get("distributed_type")
    sharding = given.get("fsdp_config") or {}
    if kind in (None, "NO", "MULTI_CPU"):
        raise LaunchError(f"{file}: distributed_type {kind} starts one process; MULTI_GPU works on a CPU too")
    if kind == "FSDP" and sharding.get("fsdp_state_dict_type") != "FULL_STATE_DICT":
        raise LaunchError(
            f"{file}: fsdp_state_dict_type must be FULL_STATE_DICT: with SHARDED_STATE_DICT, the default, no "
            "model is saved"
        )
    if kind == "DEEPSPEED" and importlib.util.find_spec("deepspeed") is None:
        raise LaunchError(f"{file.stem} needs deepspeed: pip install deepspeed, or take fsdp2")
    return file


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


def _check_machine(num_processes: int, nodes: Nodes) -> None:
    """Refuse what these machines cannot do."""
    here, rest = divmod(num_processes, nodes.machines)
    if rest:
        raise LaunchError(
            f"num_processes={num_processes} must be a multiple of the {nodes.machines} machines"
        )
    devices = torch.accelerator.device_count() if torch.accelerator.is_available() else here
    if here > devices:
        raise LaunchError(
            f"num_processes={num_processes} needs {here} devices on this machine, which has {devices}; ask "
            f"for {devices * nodes.machines} at most, or for the CPU by an empty CUDA_VISIBLE_DEVICES"
        )


def _environment() -> dict[str, str]:
    """This process's environment and import path; one thread each on a CPU, where more fight for cores."""
    threads = os.environ.get("OMP_NUM_THREADS", "1") if torch.accelerator.is_available() else "1"
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    return {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": path, "PYTHONFAULTHANDLER": "1"}


def _stream(command: list[str], log: Path) -> int:
    """Run the launcher, print what the processes write, and give its exit code. Nothing outlives the call."""
    options: dict[str, Any] = {"env": _environment(), "encoding": "utf-8", "errors": "replace"}
    options |= {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
    options |= {"start_new_session": True}  # Ctrl-C reaches this process alone, which passes it on once
    with log.open("w") as errors, subprocess.Popen(command, stderr=errors, **options) as launcher:
        try:
            _show(launcher)
            return launcher.wait()
        except KeyboardInterrupt:
            launcher.send_signal(signal.SIGINT)
            _show(launcher)  # a trainer finishes its step and saves now; a second Ctrl-C does not wait
            raise
        finally:
            launcher.kill()


def _show(launcher: subprocess.Popen[str]) -> None:
    for line in launcher.stdout or ():
        print(line, end="", flush=True)


def _explain(function: str, num_processes: int, folder: Path, log: Path, code: int) -> str:
    """Say which process failed first, and how."""
    if code == 0:
        return f"{function} ended without a result: does it call sys.exit?"
    failure = folder / "failure.json"
    if not failure.exists():
        said = (
            _last_lines(log.read_text(encoding="utf-8")) if log.exists() else "no call of the first machine"
        )
        return f"{function}: the launcher ended with code {code}:\n{said}"
    first = read_json(failure)
    which = f"process {first['rank']} (of 0 to {num_processes - 1})" if num_processes > 1 else "its process"
    if first["exitcode"] < 0:
        name = signal.Signals(-first["exitcode"]).name
        return f"{function}: {which} was killed by {name}{HINTS.get(name, '')}"
    return f"{function} failed in {which}:\n{_last_lines(first['error'])}"


def _last_lines(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-SHOWN_LINES:])
