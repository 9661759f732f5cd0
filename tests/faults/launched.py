"""Trainings in two processes: a rank, the launcher or who called it is ended at a seeded moment."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from lib.dial import dial_tasks
from lib.methods.ada_grpo import AdaGRPO
from lib.runs import Run, write_json, write_rows
from lib.tasks import task_rows

from .campaign import Found
from .processes import family, left
from .trainings import RL, base, differences, left_by

COMMAND = "import json, sys; from lib.engines.launch import run; print(run(**json.load(open(sys.argv[1]))))"
STEPS = 5


def case(rng: random.Random, folder: Path, number: int) -> Found:
    """Ada-GRPO by two processes over gloo, with whole models or with FSDP2 in turn, ended once."""
    parallel = ("ddp", "fsdp2")[number % 2]
    straight, broken = folder.parent / f"straight_{parallel}", []
    if not (straight / "checkpoint" / "finished.json").exists():
        _launch(straight, parallel).wait(400)
    child, step, wait = _launch(folder, parallel), rng.randrange(STEPS - 1), rng.uniform(0, 2)
    while len(Run(folder, {}).metrics()) < step and child.poll() is None:
        time.sleep(0.05)
    time.sleep(wait if step else 5 * wait)
    pids = family(child.pid) if child.poll() is None else [child.pid]
    who, how = rng.randrange(len(pids)), rng.choice((signal.SIGKILL, signal.SIGTERM))
    if child.poll() is None:
        os.kill(pids[who], how)
    child.wait(120)
    if there := left(pids[1:]):
        broken.append(f"{len(there)} processes are left")
    if (code := _launch(folder, parallel).wait(400)) != 0:
        broken.append(f"the resumed run ends by {code}: {(folder / 'log.txt').read_text()[-200:]}")
    if differing := differences(left_by(straight), left_by(folder)):
        broken.append(f"differs in {differing}")
    return Found(
        f"{parallel}: {how.name} to {who} of {len(pids)} after step {step} + {wait:.1f} s", 1, broken
    )


def _launch(folder: Path, parallel: str) -> subprocess.Popen[bytes]:
    """Who calls the launcher, as a notebook does."""
    folder.mkdir(exist_ok=True)
    root = folder.parent
    rows = write_rows(root / "rows.jsonl", task_rows(dial_tasks(6, split="train", seed=0, depths=[1, 2])))
    config = AdaGRPO.cpu(base(root), **RL | {"batches": STEPS, "num_generations": 4, "micro_batch_size": 4})
    call = {"config": config.as_json(), "rows": rows, "folder": str(folder)}
    told = folder / "call.txt"  # of no run: what a run leaves is compared
    write_json(
        told,
        {
            "function": f"{__package__}.trainings:by_two",
            "config": call,
            "num_processes": 2,
            "accelerate_config": parallel,
        },
    )
    surroundings = {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    with (folder / "log.txt").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND, str(told)], env=os.environ | surroundings, stdout=log, stderr=log
        )
