"""Several machines at one training: which of them this is, and how the others follow the first.

    NNODES=2 NODE_RANK=0 MASTER_ADDR=host0 MASTER_PORT=29500 python -m lib.engines.nodes COMMAND ...

The same on each machine, or in each task of Slurm, which says by itself how many there are. The first runs
the command, such as the course; the others take part in every `launch.run` of it with several processes, and
end with it. All see one run folder; RUNS_DIR says where. The port after MASTER_PORT is taken too.
"""

import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import NamedTuple

from torch.distributed import TCPStore

from lib.runs import runs_folder


class NodesError(RuntimeError):
    """The environment names several machines, but not all that must be known of them."""


class Nodes(NamedTuple):
    """How many machines there are, which one this is, and where the first one listens."""

    machines: int = 1
    rank: int = 0
    address: str = "localhost"
    port: int = 29500

    def folder(self, call: int | str = "") -> Path:
        """Where the first machine's n-th call lies, for all machines to see."""
        session = os.environ.get("LAUNCH_SESSION") or f"{self.address}-{self.port}"
        return runs_folder() / "launch" / session / str(call)


def this_node() -> Nodes:
    """This machine, by torchrun's names in the environment, else by Slurm's."""

    def given(*names: str) -> str:
        return next((os.environ[name] for name in names if os.environ.get(name)), "")

    machines, rank = given("NNODES", "SLURM_NNODES") or "1", given("NODE_RANK", "SLURM_NODEID")
    if machines == "1":
        return Nodes()
    address = given("MASTER_ADDR") or first_host(given("SLURM_JOB_NODELIST"))
    port = given("MASTER_PORT") or str(Nodes().port)
    numbers = all(text.isdecimal() for text in (machines, rank, port))
    if not numbers or int(rank) >= int(machines) or not address:
        raise NodesError(
            f"{machines} machines need NODE_RANK from 0 (got {rank!r}), MASTER_ADDR, where the first one is "
            f"(got {address!r}), and perhaps MASTER_PORT (got {port!r})"
        )
    return Nodes(int(machines), int(rank), address, int(port))


def first_host(nodes: str) -> str:
    """The first of Slurm's list of hosts: "gpu[07-09,12],login1" begins with gpu07."""
    found = re.match(r"([^\[,]*)(?:\[([^\]\-,]+)[^\]]*\])?([^\[,]*)", nodes)
    return "".join(part or "" for part in found.groups()) if found else ""


def lead(here: Nodes, command: Sequence[str]) -> int:
    """Run the command, and let the other machines know where its calls will lie."""
    os.environ["LAUNCH_SESSION"] = secrets.token_hex(4)
    store = TCPStore(here.address, here.port + 1, is_master=True, wait_for_workers=False)
    store.set("session", os.environ["LAUNCH_SESSION"])
    try:
        return subprocess.run(command).returncode
    finally:
        shutil.rmtree(here.folder(), ignore_errors=True)


def follow(here: Nodes) -> int:
    """Take part in each call of the first machine, until its command has ended."""
    store = TCPStore(here.address, here.port + 1, timeout=timedelta(minutes=10))
    os.environ["LAUNCH_SESSION"] = store.get("session").decode()
    for number in count(1):
        while not (here.folder(number) / "call.json").exists():
            try:
                store.check(["session"])
            except RuntimeError:  # it is gone, and the command with it
                return 0
            time.sleep(0.5)
        words = ["-m", "lib.engines.worker", "launch", str(here.folder(number)), str(os.getpid())]
        subprocess.run([sys.executable, *words])
    return 0


if __name__ == "__main__":
    node = this_node()
    sys.exit(follow(node) if node.rank else lead(node, sys.argv[1:]))
