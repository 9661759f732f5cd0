"""Machines: those of data/machines.yaml, and the one at hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace

import yaml

from lib.checked import close
from lib.runs import ROOT
from lib.studies.planner.models import PlanError

FILE = ROOT / "data" / "machines.yaml"
HERE = "here"
_LOOK = """
import json, torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
free, total = torch.cuda.mem_get_info(0) if count else (0, 0)
print(json.dumps([count, free / 2**30, total / 2**30, torch.cuda.get_device_name(0) if count else ""]))
"""


@dataclass(frozen=True)
class Machine:
    """Devices alike: memory in GiB, bandwidth in GB/s, dense bf16 in TFLOP/s each; disk in GB in all."""

    name: str
    memory: float
    bandwidth: float
    tflops: float
    disk: float
    devices: int = 1  # of a node
    nodes: int = 1
    taken: float = 0.0  # GiB of the first device that another process holds

    @property
    def count(self) -> int:
        """Devices in all."""
        return self.devices * self.nodes

    def __str__(self) -> str:
        nodes = f"{self.nodes} nodes of " if self.nodes > 1 else ""
        device = f"{self.memory:.1f} GiB, {self.bandwidth} GB/s, {self.tflops} TFLOP/s"
        return f"{self.name}: {nodes}{self.devices} x {device}"


def find_machine(name: str) -> Machine:
    """A machine of the table by name, or "here": the devices that torch sees. Raises PlanError."""
    table = _read()["machines"]
    if name == HERE:
        return _at_hand({key: Machine(key, **facts) for key, facts in table.items()})
    if name not in table:
        raise PlanError(
            f"there is no machine {name!r}{close(name, table)}; {FILE.name} has {', '.join(table)}."
        )
    return Machine(name, **table[name])


def machine_of(profile: str) -> str:
    """The name of the machine that a profile is made for. Raises PlanError for one without."""
    profiles = _read()["profiles"]
    if profile not in profiles:
        raise PlanError(
            f"{FILE.name} names no machine for the profile {profile!r}: add it there, or give --machine."
        )
    return profiles[profile]


def _at_hand(known: dict[str, Machine]) -> Machine:
    """The devices here, maybe none; what torch does not tell is that of the largest known ones no larger."""
    found = subprocess.run([sys.executable, "-c", _LOOK], capture_output=True, text=True)
    if found.returncode != 0:
        raise PlanError(f"torch could not be asked for its devices: {found.stderr.strip().splitlines()[-1]}")
    count, free, total, name = json.loads(found.stdout)
    if not count:
        return replace(known["12gb"], name="this machine, without a GPU", memory=0.0, devices=0)
    smaller = [one for one in known.values() if one.memory <= 1.03 * total] or [known["12gb"]]
    like = max(smaller, key=lambda one: (one.memory, -one.count))
    nodes = int(
        os.environ.get("NNODES") or os.environ.get("SLURM_NNODES") or "1"
    )  # as lib.engines.nodes has it
    taken = max(0.0, total - free - 1.0)  # less than that is a context of ours
    return replace(like, name=name, memory=round(total, 1), devices=count, nodes=nodes, taken=taken)


def _read() -> dict[str, dict]:
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))
