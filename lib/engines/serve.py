"""`vllm serve` on this machine for as long as it is needed: a block of Python, or a command.

`python -m lib.engines.serve MODEL [vLLM's options] -- COMMAND ...` runs a command beside a server, with its
address for every "{url}" in it. Stop a server before training: it holds the devices.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.distributed.elastic.utils.distributed import get_free_port

from lib.engines.server import ServerError
from lib.policies.load import find_source
from lib.runs import runs_folder


@contextmanager
def serving(base: str, log: Path, options: Sequence[str] = (), *, patience: float = 1800.0) -> Iterator[str]:
    """Serve a model as `load_policy` knows it; yields the address for `load_engine("server", base, url=...)`.

    A copy on each device of this machine, for this machine alone; `options` are vLLM's, and go before. What
    it says goes to `log`. ServerError where it is not up after `patience` seconds.
    """
    source, pinned = find_source(base)
    usual = {"model": source, "served-model-name": base, "host": "127.0.0.1", "port": get_free_port()}
    usual |= {"data-parallel-size": max(1, torch.accelerator.device_count()), **pinned}
    usual |= {"logprobs-mode": "processed_logprobs"}  # of the distribution that tokens are drawn from
    if not torch.accelerator.is_available():
        usual["gpu-memory-utilization"] = 0.2  # of the main memory, which others need
    words = [word for name, value in usual.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words, *options]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
    try:
        _wait(process, f"http://127.0.0.1:{usual['port']}/health", log, time.monotonic() + patience)
        yield f"http://127.0.0.1:{usual['port']}/v1"
    finally:
        for sent in (signal.SIGTERM, signal.SIGKILL):  # the second for an engine that stayed behind
            try:
                os.killpg(process.pid, sent)
                process.wait(60)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


def _end_with_parent() -> None:
    """In the new process: SIGTERM as soon as the one that started it is gone, even by SIGKILL."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _wait(process: subprocess.Popen[bytes], health: str, log: Path, end: float) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while process.poll() is None and time.monotonic() < end:
        try:
            direct.open(health, timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    last = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
    raise ServerError(f"vLLM's server is not up (exit status {process.poll()}). The end of {log}:\n{last}")


def main(words: Sequence[str]) -> int:
    """The command line; returns the exit status of the command."""
    if "--" not in words[1:-1]:
        sys.exit(__doc__)
    cut = words.index("--")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # through `finally`
    with serving(words[0], runs_folder() / "server.log", words[1:cut]) as url:
        return subprocess.call([word.replace("{url}", url) for word in words[cut + 1 :]])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
