"""Every start of two processes takes about 3 s here, so a test asks for as much as one start can show."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config import config_args
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from lib.engines import launch, worker
from lib.engines.launch import LaunchError, configuration, run
from lib.policies.load import load_policy, sharded_by
from lib.runs import read_json, write_json

CONFIG = {"count": 10, "weight": 1.5}


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """Two processes on a machine with one GPU would be refused."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


# ---- what works --------------------------------------------------------------------------------


def test_one_process_and_two_give_the_same_result(capsys):
    alone = run("launch_functions:sum_squares", CONFIG)
    assert capsys.readouterr().out == "rank 0 has 10 numbers\n"
    together = run("launch_functions:sum_squares", CONFIG, num_processes=2)
    assert together == alone == {"sum": 285, "weights": [0.5, 1.5]}
    assert capsys.readouterr().out == "rank 0 has 5 numbers\n"  # the work was shared, and rank 1 is quiet


def test_each_process_has_one_thread_and_only_rank_0_need_return(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert run("launch_functions:threads", {}, num_processes=2) == {"threads": 2}


def test_output_comes_line_by_line_while_the_processes_run():
    class Clock(io.StringIO):
        times: dict[str, float] = {}  # noqa: RUF012

        def write(self, text: str) -> int:
            self.times[text.strip()] = time.monotonic()
            return super().write(text)

    with contextlib.redirect_stdout(Clock()) as shown:
        run("launch_functions:tick", {}, num_processes=2)
    ticks = [shown.times[f"tick {number}"] for number in range(3)]
    assert 1.5 < ticks[2] - ticks[0] < 5
    assert shown.getvalue().splitlines().count("tick 0") == 1
    assert "a warning" in shown.getvalue()  # what goes to stderr is for the reader too


# ---- what is refused before anything starts ----------------------------------------------------


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("sum_squares", "write 'module:name'"),
        ("launch_functions:", "write 'module:name'"),
        ("launch_functionz:sum_squares", "there is no module 'launch_functionz'"),
        ("lib.nowhere:train", r"there is no module 'lib\.nowhere'"),
        ("launch_functions:sum_cubes", "has no function 'sum_cubes'"),
        ("launch_functions:not_a_function", "has no function 'not_a_function'"),
        ("__main__:train", "put it in a module"),
    ],
)
def test_a_wrong_function_starts_nothing(function, message, monkeypatch):
    monkeypatch.setattr(launch, "_stream", lambda *arguments: pytest.fail("something was started"))
    for count in (1, 2):
        with pytest.raises(LaunchError, match=message):
            run(function, CONFIG, num_processes=count)


def test_a_package_missing_inside_the_module_is_not_called_a_wrong_name(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import surely_not_installed\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="surely_not_installed"):
        run("needs_more:train", {})


def test_what_cannot_work_is_refused_before_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "_stream", lambda *arguments: pytest.fail("something was started"))
    name = "launch_functions:sum_squares"
    with pytest.raises(LaunchError, match=r"the config of .* must be JSON: .*PosixPath"):
        run(name, {"folder": tmp_path}, num_processes=2)
    with pytest.raises(LaunchError, match="num_processes must be 1 or more, got 0"):
        run(name, CONFIG, num_processes=0)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    with pytest.raises(LaunchError, match="needs 2 devices on this machine, which has 1; ask for 1 at most"):
        run(name, CONFIG, num_processes=2)


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "zero2", "zero3"])
def test_configurations_go_by_name_and_say_nothing_of_machines(name, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())  # as with deepspeed
    given = yaml.safe_load(configuration(name).read_text())
    assert not {"num_machines", "num_processes", "machine_rank", "mixed_precision"} & set(given)
    assert (name == "fsdp2") == ("fsdp_config" in given) and (name[:4] == "zero") == (
        "deepspeed_config" in given
    )
    assert config_args.load_config_from_file(str(configuration(name))).num_machines == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "fsdp",
            "no accelerate config file 'fsdp'; did you mean 'fsdp2'\?.* There are ddp, fsdp2, zero2, zero3",
        ),
        ("none.yaml", "no accelerate config file .*none.yaml"),
        ("zero2", "zero2 needs deepspeed: pip install deepspeed, or take fsdp2"),
        ({"distributed_type": "MULTI_CPU"}, "MULTI_CPU starts one process; MULTI_GPU works on a CPU too"),
        (
            {"distributed_type": "FSDP"},
            "must be FULL_STATE_DICT: with SHARDED_STATE_DICT.* no model is saved",
        ),
        (
            {"distributed_type": "FSDP", "fsdp_config": {"fsdp_state_dict_type": "SHARDED_STATE_DICT"}},
            "must be FULL_STATE_DICT",
        ),
    ],
)
def test_a_configuration_that_cannot_work_is_refused_with_what_can(given, message, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "_stream", lambda *arguments: pytest.fail("something was started"))
    if isinstance(given, dict):
        (tmp_path / "own.yaml").write_text(yaml.safe_dump(given))
        given = tmp_path / "own.yaml"
    with pytest.raises(LaunchError, match=message):
        run("launch_functions:sum_squares", CONFIG, num_processes=2, accelerate_config=given)


@pytest.mark.parametrize(
    ("name", "environment"),
    [("fsdp2", {"ACCELERATE_USE_FSDP": "true"}), ("zero3", {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"})],
)
def test_4_bit_weights_are_not_sharded(name, environment, monkeypatch):
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(ValueError, match=f"cannot be sharded by {name}: .*ddp or zero2.* or LoRA on 16-bit"):
        load_policy("no-such-model", quantised=True)
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    assert not sharded_by()


# ---- where it runs -----------------------------------------------------------------------------


def test_one_process_is_fresh_where_there_is_an_accelerator_and_this_one_on_a_cpu(monkeypatch):
    assert run("launch_functions:where", {})["pid"] == os.getpid()
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    result = run("launch_functions:where", {})
    assert result["pid"] != os.getpid() and result["group"] is None


def test_a_worker_takes_its_own_device_before_anything_loads(tmp_path, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "set_device_index", chosen.append)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: chosen[-1])
    for name, value in {"RANK": "0", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    call = {"function": "launch_functions:where", "config": {}, "alone": False}
    write_json(tmp_path / "call.json", call)
    worker._call(tmp_path)
    assert read_json(tmp_path / "result.json")["device"] == 1


def test_a_worker_lives_without_an_input_as_under_a_scheduler(tmp_path):
    call = {"function": "launch_functions:slow", "config": {}, "alone": True}
    write_json(tmp_path / "call.json", call)
    words = f"{sys.executable} -m torch.distributed.run --standalone -m lib.engines.worker {tmp_path}"
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        ["sh", "-c", f"exec {words} $$"], stdin=subprocess.DEVNULL, env=os.environ | path, capture_output=True
    )
    assert done.returncode == 0 and read_json(tmp_path / "result.json") == {"slept": 2}


# ---- what fails --------------------------------------------------------------------------------


def test_a_failing_process_is_named_with_its_own_traceback(capsys):
    begun = time.monotonic()
    with pytest.raises(LaunchError) as caught:
        run("launch_functions:fail_in_the_last", {}, num_processes=2)
    message = str(caught.value)
    assert "launch_functions:fail_in_the_last failed in process 1 (of 0 to 1)" in message
    assert message.endswith("ValueError: the cat ate the batch")
    assert 'launch_functions.py", line' in message
    assert time.monotonic() - begun < 60  # process 0 waits in a collective, and must be ended
    assert "elastic" not in capsys.readouterr().out  # the launcher's own report stays out of the cell


@pytest.mark.skipif(sys.platform != "linux", reason="on_exit is glibc's")
def test_work_that_is_whole_is_not_lost_when_its_process_aborts_at_the_end():
    assert run("launch_functions:abort_at_the_end", {}, num_processes=2) == {"sum": 2}


def test_a_killed_process_does_not_leave_the_other_hanging():
    begun = time.monotonic()
    with pytest.raises(LaunchError, match=r"process 1 \(of 0 to 1\) was killed by SIGKILL.*memory"):
        run("launch_functions:die_in_the_last", {}, num_processes=2)
    assert time.monotonic() - begun < 60


def test_the_process_that_was_killed_is_named_and_not_the_one_that_missed_it(tmp_path, monkeypatch):
    """Its partner's error is often written before anybody has looked how the killed one ended."""
    missed, killed = ProcessFailure(0, 10, 1, ""), ProcessFailure(1, 11, -signal.SIGKILL, "")
    worker._keep_failure(tmp_path, 0, 1, "reset by peer")

    def start(call, folder):
        raise ChildFailedError("worker", {0: missed, 1: killed})

    monkeypatch.setattr(worker, "_when", lambda happens, act: None)
    monkeypatch.setattr(worker, "_start", start)
    monkeypatch.setattr(worker, "read_json", lambda path: {})
    assert worker.launch(tmp_path, 1) == 1
    failure = read_json(tmp_path / "failure.json")
    assert (failure["rank"], failure["exitcode"]) == (1, -signal.SIGKILL)


def test_of_two_that_raise_in_one_second_the_first_is_named(tmp_path, monkeypatch):
    """torch keeps whole seconds, and takes the lower rank of equals."""

    def start(call, folder):
        for rank in (1, 0):
            monkeypatch.setenv("RANK", str(rank))
            assert worker.work(tmp_path, 1) == 1
        raise ChildFailedError("worker", {rank: ProcessFailure(rank, 10, 1, "") for rank in (0, 1)})

    def fail(folder):
        raise ValueError(f"in {os.environ['RANK']}")

    monkeypatch.setattr(worker, "_when", lambda happens, act: None)
    monkeypatch.setattr(worker, "_start", start)
    monkeypatch.setattr(worker, "_call", fail)
    monkeypatch.setattr(os, "dup2", lambda one, other: None)
    monkeypatch.setattr(worker, "read_json", lambda path: {})
    monkeypatch.setattr(worker, "is_first_process", lambda: True)
    assert worker.launch(tmp_path, 1) == 1
    failure = read_json(tmp_path / "failure.json")
    assert failure["rank"] == 1 and failure["error"].endswith("ValueError: in 1\n")


@pytest.mark.slow
def test_a_process_that_hears_of_nothing_is_ended_too(tmp_path):
    begun = time.monotonic()
    with pytest.raises(LaunchError, match=r"process 1 \(of 0 to 1\) was killed by SIGKILL"):
        run("launch_functions:stick_in_the_last", {"folder": str(tmp_path)}, num_processes=2)
    assert time.monotonic() - begun < 60
    assert not any(is_running(int(path.read_text())) for path in tmp_path.glob("*.pid"))


@pytest.mark.parametrize("closed", ["<&-", "< /dev/null"])
def test_a_closed_input_does_not_matter(closed):
    call = "run('launch_functions:where', {}, num_processes=2)"
    code = f"from lib.engines.launch import run; print({call}['group'])"
    done = subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" {closed}', sys.executable, code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "2\n", done.stderr


def test_the_error_of_one_process_is_its_own():
    with pytest.raises(KeyError, match="count"):
        run("launch_functions:sum_squares", {})


@pytest.mark.parametrize("count", [1, 2])
def test_a_result_that_is_not_json_is_an_error(count):
    with pytest.raises(
        LaunchError, match=r"the result of launch_functions:give_a_tensor must be JSON: .*Tensor"
    ):
        run("launch_functions:give_a_tensor", {}, num_processes=count)


def test_a_result_that_is_no_dict_or_never_comes_is_an_error():
    with pytest.raises(LaunchError, match="must be a dict, got NoneType"):
        run("launch_functions:give_nothing", {})
    with pytest.raises(LaunchError, match="ended without a result"):
        run("launch_functions:leave", {}, num_processes=2)


# ---- how it ends -------------------------------------------------------------------------------


@pytest.fixture
def start_waiting(tmp_path):
    """Start a process that calls `run`, wait until both of its processes wait; give it and their ids."""
    parents = []

    def start(function: str) -> tuple[subprocess.Popen, list[int]]:
        code = (  # a shell that starts pytest with & lets its children ignore Ctrl-C
            "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "import torch; torch.accelerator.is_available = lambda: False\n"
            "from lib.engines.launch import run\n"
            f"run({function!r}, {{'folder': {str(tmp_path)!r}}}, num_processes=2)"
        )
        parent = subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        parents.append(parent)
        files = [tmp_path / "0.pid", tmp_path / "1.pid"]
        assert wait_until(lambda: all(file.exists() and file.read_text() for file in files), 60)
        return parent, [int(file.read_text()) for file in files]

    yield start
    for parent in parents:
        parent.kill()
        parent.communicate()


def press_ctrl_c(parent: subprocess.Popen) -> None:
    """As a terminal or Jupyter does it: the signal goes to the whole group."""
    os.killpg(parent.pid, signal.SIGINT)


def test_ctrl_c_ends_all_processes_after_they_could_save(start_waiting, tmp_path):
    parent, pids = start_waiting("launch_functions:wait_politely")
    assert all(is_running(pid) for pid in pids)
    press_ctrl_c(parent)
    _, errors = parent.communicate(timeout=120)  # the launcher kills what has not ended after 30 s
    assert errors.strip().endswith("KeyboardInterrupt")
    assert not any(is_running(pid) for pid in pids)
    assert (tmp_path / "0.saved").exists() and (tmp_path / "1.saved").exists()


def test_a_second_ctrl_c_does_not_wait(start_waiting):
    parent, pids = start_waiting("launch_functions:wait_stubbornly")
    press_ctrl_c(parent)
    time.sleep(1)
    assert parent.poll() is None and all(is_running(pid) for pid in pids)
    begun = time.monotonic()
    press_ctrl_c(parent)
    parent.communicate(timeout=60)
    assert time.monotonic() - begun < 20  # and not 30 s, after which the launcher kills
    assert wait_until(lambda: not any(is_running(pid) for pid in pids), 20)


def test_a_killed_notebook_leaves_no_process_behind(start_waiting):
    parent, pids = start_waiting("launch_functions:wait")
    parent.kill()
    parent.communicate(timeout=60)
    assert wait_until(lambda: not any(is_running(pid) for pid in pids), 20)


def test_a_launcher_whose_parent_ended_while_it_was_imported_starts_nothing(tmp_path):
    call = {"function": "launch_functions:slow", "config": {}, "alone": False, "num_processes": 1, "nodes": 1}
    write_json(tmp_path / "call.json", call | {"accelerate_config": str(configuration("ddp"))})
    command = [sys.executable, "-m", "lib.engines.worker", "launch", str(tmp_path), "1"]
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=os.environ | path, capture_output=True, timeout=60)
    assert done.returncode == 1 and not (tmp_path / "result.json").exists()


def test_a_killed_notebook_lets_a_trainer_save(start_waiting, tmp_path):
    parent, pids = start_waiting("launch_functions:wait_for_the_end")
    parent.kill()
    parent.communicate(timeout=60)
    assert wait_until(lambda: not any(is_running(pid) for pid in pids), 20)
    assert (tmp_path / "0.saved").exists() and (tmp_path / "1.saved").exists()
