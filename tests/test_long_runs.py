"""Runs that are ended: by their job's time, by signals, by kills at random moments. The same call goes on."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, SeedableRandomSampler
from faults.processes import family, left
from safetensors.torch import load_file
from torch.utils.data import BatchSampler
from transformers import TrainerControl, TrainerState, TrainingArguments

from lib.dial import dial_tasks
from lib.methods.adaptthink import AdaptThink
from lib.methods.callbacks import RunCallback, end_of_job, updates_per_batch
from lib.methods.fit import build, training_arguments
from lib.methods.training import last_checkpoint
from lib.policies.load import CHECKPOINTS
from lib.runs import Run, write_json, write_rows
from lib.tasks import task_rows
from lib.thinking import OPEN

MOMENTS = int(os.environ.get("KILLS", "2"))  # KILLS=10: ten
COMMAND = "import json, sys; from lib.engines.launch import run; print(run(**json.load(open(sys.argv[1]))))"
STEPS = 12


@pytest.fixture(scope="module")
def questions():
    """Of a reference that is never right: each right answer, and each that skips, teaches something."""
    tasks = dial_tasks(24, split="train", seed=0, depths=[1, 2])
    more = {"reference_accuracy": 0.0}
    return [row | more | {"prompt": f"{row['prompt']}{OPEN}"} for row in task_rows(tasks)]


@pytest.fixture
def launch(tmp_path, questions):
    """Start a training in processes of its own, as a notebook does; gives the process and the run."""
    write_rows(tmp_path / "rows.jsonl", questions)

    def start(name: str, processes: int = 2, extra=(), **changes) -> tuple[subprocess.Popen, Run]:
        small = {"batches": STEPS, "prompts": 4, "num_generations": 4, "micro_batch_size": 4, "save_every": 2}
        small |= {"max_completion_length": 24, "max_nothinking_length": 12, "learning_rate": 1e-3}
        config = AdaptThink.cpu(**small | changes)
        run = Run(tmp_path / name, {})
        call = {"config": config.as_json(), "rows": str(tmp_path / "rows.jsonl"), "folder": str(run.folder)}
        given = {"function": "lib.methods.fit:train", "config": call, "num_processes": processes}
        write_json(tmp_path / f"{name}.json", given)
        environment = {"PYTHONPATH": os.pathsep.join(sys.path), "CUDA_VISIBLE_DEVICES": ""} | dict(extra)
        child = subprocess.Popen(
            [sys.executable, "-c", COMMAND, str(tmp_path / f"{name}.json")],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return child, run

    return start


def finished(child: subprocess.Popen) -> str:
    said = child.communicate(timeout=300)[0]
    assert child.returncode == 0, said
    return said


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.checkpoint / "result" / "model.safetensors")


def gap(one: Run, other: Run) -> float:
    """How far the weights of two runs are apart; both have left the start."""
    first, second = weights(one), weights(other)
    start = load_file(CHECKPOINTS / "dial-thinker" / "model.safetensors")
    assert max((first[name] - start[name]).abs().max().item() for name in start) > 1e-3
    return max((first[name] - second[name]).abs().max().item() for name in first)


def differing(one: Run, other: Run) -> set[str]:
    """The metrics that differ somewhere, but for times."""
    rows = list(zip(one.metrics(), other.metrics(), strict=True))
    names = {name for a, b in rows for name in a | b if a.get(name) != b.get(name)}
    return names - {"seconds", "step_time"}


# ---- when to stop --------------------------------------------------------------------------------


def test_the_end_of_a_job_is_read_from_the_environment(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    assert end_of_job() == float("inf")
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1700000000")
    assert end_of_job() == 1.7e9
    monkeypatch.setenv("JOB_END_TIME", "18:00")
    with pytest.raises(ValueError, match=r"JOB_END_TIME must be in seconds since 1970.*'18:00'"):
        end_of_job()


def test_a_stop_waits_for_the_end_of_a_rollout_batch(tmp_path):
    config = AdaptThink.cpu("dial-thinker", prompts=8, num_generations=4, micro_batch_size=4, updates=4)
    arguments = training_arguments(config, tmp_path)
    assert arguments.gradient_accumulation_steps == 2 and updates_per_batch(arguments) == 4


@pytest.mark.parametrize(("left", "stops"), [(14, True), (16, False)])
def test_a_step_and_a_half_must_fit_before_the_end(left, stops, monkeypatch):
    monkeypatch.setenv("JOB_END_TIME", "1000")
    callback, control = RunCallback(), TrainerControl()
    state = TrainerState(global_step=1, max_steps=9)
    monkeypatch.setattr(time, "monotonic", lambda: 500.0)
    callback.on_train_begin(None, state, control)
    monkeypatch.setattr(time, "monotonic", lambda: 510.0)  # a step took ten seconds
    monkeypatch.setattr(time, "time", lambda: 1000.0 - left)
    callback.on_step_end(TrainingArguments(use_cpu=True, report_to="none"), state, control)
    assert (control.should_save, control.should_training_stop) == (stops, stops)


def test_resumed_after_the_first_epoch_questions_come_in_the_order_of_theirs(tmp_path, questions):
    """TRL's sampler begins anew with the first epoch's."""
    config = AdaptThink.cpu(batches=9, prompts=8, num_generations=4, micro_batch_size=16)
    sampler = build(config, questions, Run(tmp_path, {}))._get_train_sampler()
    orders = [list(sampler) for _ in range(3)]
    assert orders[0] != orders[1]
    for epoch in (2, 0, 1):
        sampler.set_epoch(epoch)
        assert list(sampler) == orders[epoch]


@pytest.mark.parametrize(("epoch", "order"), [(None, 0), (0.5, 0), (1.0, 1), (1.75, 1), (2.9999999, 3)])
def test_the_order_of_an_epoch_reaches_the_sampler_behind_every_wrapper(epoch, order):
    """Of several processes each takes its share of the batches."""
    sampler = SeedableRandomSampler(range(8), data_seed=0)
    shard = BatchSamplerShard(BatchSampler(sampler, 2, False), num_processes=2, process_index=1)
    state = TrainerState(epoch=epoch)
    loader = SimpleNamespace(batch_sampler=shard)
    RunCallback().on_epoch_begin(None, state, None, train_dataloader=loader)
    assert sampler.epoch == order


# ---- ended and resumed ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_killed_at_random_moments_a_run_ends_with_the_same_weights(launch):
    """SIGKILL to a rank, the launcher or the notebook, SIGTERM to a rank or the launcher; seeded."""
    child, straight = launch("straight")
    finished(child)
    moments = random.Random(0)
    for number in range(MOMENTS):
        child, run = launch(f"killed_{number}")
        step, wait, who, how = (
            moments.randrange(STEPS - 1),
            moments.uniform(0, 0.5),
            moments.randrange(4),
            moments.choice((signal.SIGKILL, signal.SIGTERM)),
        )
        while len(run.metrics()) < step and child.poll() is None:
            time.sleep(0.02)
        if step == 0:  # perhaps before anything trains
            time.sleep(10 * wait)
        time.sleep(wait)
        pids = family(child.pid)
        who = min(who, len(pids) - 1)
        os.kill(pids[who], how)
        assert left(pids[1:]) == [], "a process was left behind"
        assert child.wait(60) != 0
        kept = last_checkpoint(run.checkpoint)
        said = finished(launch(f"killed_{number}")[0])
        assert str({"resumed": kept is not None})[1:-1] in said
        moment = f"{how.name} to {who} of {len(pids)} after step {step} + {wait:.2f} s"
        print(f"{moment}; resumed at {kept and kept.name}")
        assert gap(straight, run) == 0.0 and not differing(straight, run)
        assert len(list(run.checkpoint.glob("checkpoint-*"))) <= 2


@pytest.mark.slow
def test_all_processes_stop_together_before_the_jobs_time_is_over(launch):
    child, straight = launch("straight")
    finished(child)
    child, run = launch("stopped", extra={"JOB_END_TIME": str(time.time())})
    said = child.communicate(timeout=120)[0]
    assert child.returncode and "saved at step 1; the same call goes on from there" in said
    assert "was killed by SIGTERM; a training has saved its last step" in said
    finished(launch("stopped")[0])
    assert gap(straight, run) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 4])
def test_resumed_with_another_number_of_processes_all_holds_but_the_draws(processes, launch, questions):
    """Optimiser, schedule and data are kept; drawn greedily, so is the result, to rounding."""
    greedy = {"trainer": {"top_k": 1}, "prompts": 8}
    child, straight = launch("straight", **greedy)
    finished(child)
    child, run = launch("stopped", extra={"JOB_END_TIME": str(time.time())}, **greedy)
    child.communicate(timeout=120)
    saved = finished(launch("stopped", processes=processes, **greedy)[0])
    assert f"'processes': {processes}" in saved and "'resumed': True" in saved
    rates = [[row["learning_rate"] for row in one.metrics()] for one in (straight, run)]
    assert rates[0] == rates[1]
    print(f"2 processes, then {processes}: weights {gap(straight, run):.1e}")
    assert gap(straight, run) < 1e-4


@pytest.mark.slow
def test_two_machines_train_and_resume(launch, tmp_path):
    from test_launch_nodes import port

    child, straight = launch("straight")
    finished(child)
    for ends in ({"JOB_END_TIME": str(time.time())}, {}):
        shared = {"NNODES": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port())} | ends
        first, run = launch("nodes", extra=shared | {"NODE_RANK": "0"})
        second = subprocess.Popen(
            [sys.executable, "-c", COMMAND, str(tmp_path / "nodes.json")],
            env=os.environ | shared | {"NODE_RANK": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        first.communicate(timeout=200)
        second.wait(60)
        assert (first.returncode, second.returncode) == ((1, 1) if ends else (0, 0))
    assert (
        gap(straight, run) == 0.0
        and json.loads((run.checkpoint / "finished.json").read_text())["facts"]["resumed"]
    )


@pytest.mark.slow
def test_a_step_that_takes_longer_than_torchruns_patience_is_saved(tmp_path):
    """SIGTERM to the launcher: it passes it on, and waits for more than the 30 s of torchrun."""
    write_json(
        tmp_path / "call.json",
        {
            "function": "launch_functions:save_slowly",
            "config": {"folder": str(tmp_path)},
            "num_processes": 2,
        },
    )
    child = subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(tmp_path / "call.json")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not all((tmp_path / f"{rank}.pid").exists() for rank in (0, 1)):
        time.sleep(0.2)
    launcher = family(child.pid)[1]
    os.kill(launcher, signal.SIGTERM)
    said = child.communicate(timeout=120)[0]
    assert (tmp_path / "0.saved").exists() and (tmp_path / "1.saved").exists(), said
    assert "killed by SIGTERM" in said
