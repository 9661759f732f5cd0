"""Several machines, played by several launchers on this one: they see one folder and meet at a port."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lib.engines import launch
from lib.engines.launch import LaunchError
from lib.engines.nodes import Nodes, NodesError, first_host, this_node

NAMES = (
    "NNODES",
    "NODE_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "SLURM_NNODES",
    "SLURM_NODEID",
    "SLURM_JOB_NODELIST",
)
CALL = "from lib.engines.launch import run; print('got', run({!r}, {!r}, num_processes=2))"


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def port() -> int:
    """Two in a row that are free."""
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


@pytest.fixture
def machines():
    """Start the same words on two machines; gives the two processes."""
    started = []

    def start(*words: str) -> list[subprocess.Popen]:
        shared = {"NNODES": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port())}
        shared["PYTHONPATH"] = os.pathsep.join(sys.path)
        for rank in ("0", "1"):
            one = subprocess.Popen(
                [sys.executable, *words],
                env=os.environ | shared | {"NODE_RANK": rank},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            started.append(one)
        return started[-2:]

    yield start
    for one in started:
        one.kill()
        one.communicate()


# ---- which machine this is ---------------------------------------------------------------------


def test_without_names_in_the_environment_there_is_one_machine(monkeypatch):
    assert this_node() == Nodes(1, 0)
    monkeypatch.setenv("SLURM_NNODES", "1")  # an interactive job
    assert this_node() == Nodes(1, 0)


def test_torchruns_names_come_before_slurms(monkeypatch):
    for name, value in {"SLURM_NNODES": "4", "SLURM_NODEID": "2", "SLURM_JOB_NODELIST": "gpu[07-10]"}.items():
        monkeypatch.setenv(name, value)
    assert this_node() == Nodes(4, 2, "gpu07", 29500)
    for name, value in {
        "NNODES": "2",
        "NODE_RANK": "1",
        "MASTER_ADDR": "host",
        "MASTER_PORT": "3000",
    }.items():
        monkeypatch.setenv(name, value)
    assert this_node() == Nodes(2, 1, "host", 3000)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu[07-09,12],login1", "gpu07"), ("a1", "a1"), ("a1,b2", "a1"), ("n[3,5]-ib", "n3-ib"), ("", "")],
)
def test_the_first_host_of_slurms_list(nodes, first):
    assert first_host(nodes) == first


@pytest.mark.parametrize(
    "given",
    [
        {"NNODES": "2"},
        {"NNODES": "2", "NODE_RANK": "0"},
        {"NNODES": "2", "NODE_RANK": "2", "MASTER_ADDR": "host"},
        {"NNODES": "1:4", "NODE_RANK": "0", "MASTER_ADDR": "host"},
        {"NNODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "host", "MASTER_PORT": "http"},
    ],
)
def test_what_is_missing_is_named(given, monkeypatch):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(NodesError, match=r"machines need NODE_RANK from 0 .*MASTER_ADDR"):
        this_node()


def test_processes_are_counted_over_all_machines(monkeypatch):
    monkeypatch.setattr(launch, "_stream", lambda *arguments: pytest.fail("something was started"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 8)
    for name, value in {"NNODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "host"}.items():
        monkeypatch.setenv(name, value)
    launch._check_machine(16, this_node())
    with pytest.raises(LaunchError, match="num_processes=15 must be a multiple of the 2 machines"):
        launch.run("launch_functions:where", {}, num_processes=15)
    with pytest.raises(
        LaunchError, match="needs 12 devices on this machine, which has 8; ask for 16 at most"
    ):
        launch.run("launch_functions:where", {}, num_processes=24)


# ---- together ----------------------------------------------------------------------------------


def ended(*processes: subprocess.Popen, within: float = 100) -> list[str]:
    """What each of them printed; none may take longer."""
    return [process.communicate(timeout=within)[0] for process in processes]


@pytest.mark.slow
def test_two_machines_call_the_same_and_both_get_the_result_of_rank_0(machines):
    words = CALL.format("launch_functions:sum_squares", {"count": 10, "weight": 1.5})
    first, second = ended(*machines("-c", words))
    result = "got {'sum': 285, 'weights': [0.5, 1.5]}\n"
    assert first == f"rank 0 has 5 numbers\n{result}" and second == result


@pytest.mark.slow
def test_the_second_machine_follows_what_the_first_ones_command_calls(machines, private_runs):
    configs = [{"count": count, "weight": 1} for count in (10, 20)]
    words = "; ".join(CALL.format("launch_functions:sum_squares", config) for config in configs)
    first, second = machines("-m", "lib.engines.nodes", sys.executable, "-c", words)
    said, _ = ended(first, second)
    assert [line for line in said.splitlines() if "got" in line] == [
        "got {'sum': 285, 'weights': [0.5, 1]}",
        "got {'sum': 2470, 'weights': [0.5, 1]}",
    ]
    assert first.returncode == second.returncode == 0
    assert not list((private_runs / "launch").iterdir())  # nothing of the session is left


@pytest.mark.slow
@pytest.mark.parametrize("how", ["die_in_the_last", "leave_in_the_last", "stick_in_the_last"])
def test_when_a_process_of_one_machine_dies_all_machines_end_within_a_minute(how, machines, tmp_path):
    first, second = machines("-c", CALL.format(f"launch_functions:{how}", {"folder": str(tmp_path)}))
    pids = [tmp_path / f"{rank}.pid" for rank in (0, 1)]
    deadline = time.monotonic() + 60
    while not all(path.exists() and path.read_text() for path in pids) and time.monotonic() < deadline:
        time.sleep(0.2)
    begun = time.monotonic()
    _, errors = zip(*(process.communicate(timeout=60) for process in (first, second)), strict=True)
    assert time.monotonic() - begun < 60
    assert all("LaunchError" in error for error in errors)
    for path in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(int(Path(path).read_text()), signal.SIG_DFL)
