"""The other side of `launch`: the process that starts the others, and each of those that do the work.

`python -m lib.engines.worker launch FOLDER PARENT` starts the workers, each without that word; all end with
the process PARENT, which may have ended before they look. The folder holds call.json; rank 0 writes
result.json, who fails failure.json. Of several machines each has a launcher, and all see the folder.
"""

import atexit
import io
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed.run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from lib.engines.launch import as_json, find
from lib.engines.nodes import Nodes, this_node
from lib.runs import is_first_process, read_json, write_json

PATIENCE_S = 600  # for a worker that was asked to end: it finishes its step, which may be long, and saves


def launch(folder: Path, parent: int) -> int:
    """Start this machine's workers of a call and wait for them."""
    _when(lambda: os.getppid() != parent, lambda: os._exit(1))  # the workers then see that theirs has ended
    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(PATIENCE_S)
    try:
        _start(read_json(folder / "call.json"), folder)
    except ChildFailedError as failed:
        # Any other end than an error, or by the launcher, which stops those that are left, is the cause.
        ended = [one for one in failed.failures.items() if one[1].exitcode not in (1, -signal.SIGTERM)]
        rank, failure = ended[0] if ended else failed.get_first_failure()
        _keep_failure(folder, rank, failure.exitcode, str(failure.message), known=bool(ended))
        return 1
    except SignalException as stopped:
        _keep_failure(folder, 0, -stopped.sigval, "", known=True)
        return 1
    return 0


def _start(call: Mapping[str, Any], folder: Path) -> None:
    """Through accelerate, which makes its configuration an environment and calls torchrun."""
    from accelerate.commands.launch import launch_command, launch_command_parser

    nodes = this_node() if call["nodes"] > 1 else Nodes(port=0)
    options = {
        "config_file": call["accelerate_config"],
        "num_processes": call["num_processes"],
        "num_machines": nodes.machines,
        "machine_rank": nodes.rank,  # static, so that rank 0 is where the notebook is
        "main_process_ip": nodes.address,
        "main_process_port": nodes.port,
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    words += ["-m", "lib.engines.worker", str(folder), str(os.getpid())]
    given = launch_command_parser().parse_args(words)
    given.standalone = nodes.machines == 1  # a port that nobody else can take in between
    launch_command(given)


def _keep_failure(folder: Path, rank: int, exitcode: int, error: str, *, known: bool = False) -> None:
    """Who failed first, and how; a cause that is known replaces what another wrote as it missed it."""
    if known or not (folder / "failure.json").exists():
        write_json(folder / "failure.json", {"rank": rank, "exitcode": exitcode, "error": error})


def work(folder: Path, parent: int) -> int:
    """Call the function as one of the processes; rank 0 writes result.json."""
    _when(lambda: os.getppid() != parent, _save_and_end)
    _when((folder / "failure.json").exists, lambda: os._exit(1))  # the others wait for nobody
    os.dup2(1, 2)  # the cell shows our warnings; what the launcher says of itself stays in its log
    if not is_first_process():
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    elif isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    try:
        _call(folder)
    except Exception:  # before this process ends, and the others fail as they miss it
        _keep_failure(folder, int(os.environ.get("RANK", "0")), 1, traceback.format_exc())
        return 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0


def leave(code: int) -> NoReturn:
    """End now that all is written: gloo's threads may abort an interpreter that takes itself down."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)


def _call(folder: Path) -> None:
    call = read_json(folder / "call.json")
    if torch.accelerator.is_available():  # before anything loads: all would fill the first device
        torch.accelerator.set_device_index(int(os.environ.get("LOCAL_RANK", "0")))
    elif "ACCELERATE_USE_FSDP" in os.environ:
        _shard_on_cpu()
    if call["alone"]:  # a model needs no wrapper for a group
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            os.environ.pop(name, None)
    result = find(call["function"])(call["config"])
    if is_first_process():
        write_json(folder / "result.json", as_json(result, f"the result of {call['function']}"))


def _shard_on_cpu() -> None:
    """Let FSDP shard over gloo, in tests and dry runs: accelerate would make DDP of it, and not say so."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    usual = PartialState.__init__

    def start(self: PartialState, *given: Any, **named: Any) -> None:
        usual(self, *given, **named)
        if self.distributed_type == DistributedType.MULTI_CPU:  # once: again would switch FSDP off
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = start


def _when(happens: Callable[[], bool], act: Callable[[], None]) -> None:
    """Look every half second, in a thread, whether something has happened."""

    def watch() -> None:
        while not happens():
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
    if sys.argv[1] == "launch":
        sys.exit(launch(Path(sys.argv[2]), int(sys.argv[3])))
    leave(work(Path(sys.argv[1]), int(sys.argv[2])))
