"""Functions that tests/test_launch.py starts in one process or in several."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def join() -> int:
    """Join the other processes, if any; gives this one's rank."""
    if "WORLD_SIZE" not in os.environ:
        return 0
    dist.init_process_group("gloo")
    return dist.get_rank()


def total(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over all processes."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def sum_squares(config: dict[str, Any]) -> dict[str, Any]:
    """Each process sums its share of the squares below `count`."""
    rank = join()
    world = dist.get_world_size() if dist.is_initialized() else 1
    share = torch.arange(rank, config["count"], world)
    print(f"rank {rank} has {len(share)} numbers")
    return {"sum": int(total((share**2).sum())), "weights": (0.5, config["weight"])}


def threads(config: dict[str, Any]) -> dict[str, Any] | None:
    """The threads of all; only process 0 returns something, as many training functions do."""
    rank = join()
    count = int(total(torch.tensor(torch.get_num_threads())))
    return {"threads": count} if rank == 0 else None


def fail_in_the_last(config: dict[str, Any]) -> dict[str, Any]:
    """The last process raises; the others wait for it in a collective."""
    if join() == dist.get_world_size() - 1:
        raise ValueError("the cat ate the batch")
    return {"sum": int(total(torch.ones(1)))}


def die_in_the_last(config: dict[str, Any]) -> dict[str, Any]:
    """The last process is killed as the system does it; the others wait for it in a collective."""
    if join() == dist.get_world_size() - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"sum": int(total(torch.ones(1)))}


def wait(config: dict[str, Any]) -> dict[str, Any]:
    """Note one's process id, and never come back."""
    rank = join()
    Path(config["folder"], f"{rank}.pid").write_text(str(os.getpid()))
    print("waiting")
    time.sleep(600)
    return {}


def wait_politely(config: dict[str, Any]) -> dict[str, Any]:
    """As `wait`, but note a Ctrl-C, as a trainer writes its checkpoint then."""
    try:
        return wait(config)
    except KeyboardInterrupt:
        time.sleep(0.5)
        Path(config["folder"], f"{os.environ['RANK']}.saved").touch()
        return {}


def wait_stubbornly(config: dict[str, Any]) -> dict[str, Any]:
    """As `wait`, and deaf to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return wait(config)


def tick(config: dict[str, Any]) -> dict[str, Any]:
    join()
    for number in range(3):
        print(f"tick {number}")
        time.sleep(1)
    print("a warning", file=sys.stderr)
    return {}


def give_a_tensor(config: dict[str, Any]) -> dict[str, Any]:
    return {"loss": torch.ones(1)}


def give_nothing(config: dict[str, Any]) -> None:
    pass


def leave(config: dict[str, Any]) -> dict[str, Any]:
    sys.exit(0)


not_a_function = 3
