"""Job files: the shell reads them, and they call what the README calls. All that they start is a stand-in."""

import os
import re
import subprocess

import pytest
import yaml

from lib.course.__main__ import _parser
from lib.runs import ROOT

JOBS = ROOT / "notebooks" / "profiles" / "jobs"
SCRIPTS = sorted(JOBS.glob("*.sbatch"))
ASKED = {  # words after the script's name: the words of the program it calls
    (
        "prefetch",
        "multi_gpu",
    ): "hf download Qwen/Qwen2.5-7B --revision d149729398750b98c0af14eb82c78cfe92750796",
    (
        "serve",
        "org/name@abc",
        "--max-model-len",
        "9",
    ): "python -m vllm.entrypoints.openai.api_server --model org/name "
    "--revision abc --data-parallel-size 8 --port 8000 --max-model-len 9",
    (
        "serve",
        "org/name",
    ): "python -m vllm.entrypoints.openai.api_server --model org/name --data-parallel-size 8 --port 8000",
    (
        "train",
        "multi_node",
        "02",
        "03",
    ): "python -m lib.engines.nodes PYTHON -m lib.course --profile multi_node --only 02 03",
    ("evaluate", "multi_node"): "python -m lib.course --profile multi_node --only 04",
    ("evaluate", "multi_node", "04", "05"): "python -m lib.course --profile multi_node --only 04 05",
}


@pytest.fixture
def calls(tmp_path):
    """Run a job file where all that it calls writes down its words, in a job of two nodes."""
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    note = 'if [ "$1" = - ]; then cat > /dev/null; fi; echo "$(basename "$0") $*" >> "$CALLS"\n'
    for environment in (".venv", ".venv-vllm"):
        (tmp_path / environment / "bin").mkdir(parents=True)
        for name in ("python", "hf"):
            (tmp_path / environment / "bin" / name).write_text(f"#!/bin/bash\n{note}")
    each = "#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\n"
    each += 'for SLURM_NODEID in 0 1; do export SLURM_NODEID SLURM_PROCID=$SLURM_NODEID; "$@"; done\n'
    (tmp_path / "srun").write_text(each)
    for program in [*tmp_path.glob(".venv*/bin/*"), tmp_path / "srun"]:
        program.chmod(0o755)

    def run(name: str, *words: str) -> tuple[list[str], str]:
        found = tmp_path / "calls"
        found.unlink(missing_ok=True)
        shell = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(found), "SLURM_GPUS_ON_NODE": "8"}
        job = ["bash", str(JOBS / f"{name}.sbatch"), *words]
        done = subprocess.run(job, cwd=tmp_path, env=shell, capture_output=True, text=True, check=True)
        return found.read_text().splitlines(), done.stdout

    return run


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_shell_reads_it_and_slurm_finds_its_options(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    lines = script.read_text().splitlines()
    head = lines[: next(n for n, line in enumerate(lines) if line and line[0] != "#")]
    options = [line for line in head if line.startswith("#SBATCH")]
    assert lines[0] == "#!/bin/bash" and options and "#SBATCH" not in "".join(lines[len(head) :])
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=[\w:.%-]+)?", line) for line in options)
    assert not re.search(r"(/home|/scratch|/work|/mnt|index-url|account|partition)", script.read_text())


@pytest.mark.parametrize(("asked", "called"), ASKED.items(), ids=lambda case: case[0] if case[0] else "")
def test_it_calls_what_the_readme_calls(asked, called, calls):
    found, _ = calls(*asked)
    assert called.replace("PYTHON", ".venv/bin/python") in found
    if "-m lib.course" in called:
        _parser().parse_args(called.partition("-m lib.course ")[2].split())


def test_what_only_a_task_knows_is_expanded_in_the_task(calls):
    found, said = calls("train", "multi_node", "02")
    assert [line.split()[:2] for line in said.splitlines()] == [["machine", "0"], ["machine", "1"]]
    assert len(found) == 2


def test_what_is_missing_is_asked_for():
    done = subprocess.run(["bash", str(JOBS / "train.sbatch")], capture_output=True, text=True)
    assert done.returncode and "which profile, like multi_node" in done.stderr


def test_the_file_for_rented_machines():
    job = yaml.safe_load((JOBS / "sky.yaml").read_text())
    assert job["num_nodes"] == 2 and set(job) <= {
        *("name", "workdir", "num_nodes", "resources", "volumes", "envs", "setup", "run")
    }
    for part in ("setup", "run"):
        subprocess.run(["bash", "-n", "-c", job[part]], check=True)
    words = job["run"].partition("-m lib.course ")[2]
    for name, value in job["envs"].items():
        words = words.replace(f'"${name}"', value).replace(f"${name}", value)
    assert _parser().parse_args(words.split()).only == ["02", "03"]
