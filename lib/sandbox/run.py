"""Run model-written Python in a process of its own, behind every guard the system offers.

What a program gets: Python and its standard library, an empty scratch folder as current folder, and
until its time is up. What it does not get, and which guard (`protections()`) sees to that:

    seccomp          no network, no process or thread, no signal to others: the kernel refuses every
                     system call that a computation does not need
    landlock         no file but Python's own libraries, to read, and the scratch folder
    private_scratch  the scratch folder is a small file system in memory that vanishes with the program
    memory_limit     no more memory than asked for
    limits           CPU time, file size, open files and processes, by the rules every Unix has
    no_privileges    nothing that root may do, should the parent run as root
    parent_death     not a moment longer than the parent lives
    audit_hook       a second line inside the interpreter for files, network and processes

How it degrades. Without `private_scratch` (containers, Ubuntu 24.04) the scratch folder is read-only.
Without `landlock` (Linux before 5.13) seccomp refuses to open any file, so that only common modules of
the standard library can be imported. Without `seccomp` (macOS; processors other than x86-64 and arm64)
the audit hook alone guards network and files, and a program that means harm gets round it; processes are
bounded by `limits` for an ordinary user and not for root. macOS has no `memory_limit` either. So nothing
runs there until SANDBOX_AUDIT_ONLY=1 accepts it. The time limit holds everywhere.

What it does not protect against. A flaw in the kernel or in Python together with one. Finding out whether
a path exists, and reading what is in /usr/lib and beside Python's libraries. A busy core until the time
is up. Nor is a result more honest than its program: what a program says its answer is, it is.
"""

import json
import math
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from lib.sandbox import child

OUTPUT_LIMIT = 131_072  # bytes of stdout, and of the result; a program that writes more is stopped
MIN_MEMORY_MB = 32  # the interpreter itself takes about 20
WEAK = "the audit hook alone guards here (no seccomp): take Linux, or set SANDBOX_AUDIT_ONLY=1 to accept it"


class SandboxError(RuntimeError):
    """The sandbox itself could not start; nothing was run."""


@dataclass(frozen=True)
class SandboxResult:
    """What became of a program. `ok` means it ran to its end without an error.

    `value` is the variable `answer` where the program sets one (a function of that name does not count),
    else the value of a last expression, else None. It is plain data: None, bool, int, float, str, and
    lists and dicts with text keys of these; a tuple comes as a list and anything else as its text, so
    Fraction(1, 2) is "1/2". `error` is None or type, message and line, and then `value` is None.
    """

    ok: bool
    value: Any
    stdout: str
    error: str | None


def run_python(code: str, *, timeout: float = 5.0, memory_mb: int = 256) -> SandboxResult:
    """Run a program for at most `timeout` seconds of wall time, start included, in `memory_mb` MB.

    Whatever the program does comes back as a result. Raises ValueError for a limit that makes no sense and
    SandboxError where none can be run at all, or none safely. Safe to call from several threads.
    """
    if not (protections()["seccomp"] or os.environ.get("SANDBOX_AUDIT_ONLY") == "1"):
        raise SandboxError(WEAK)
    return _run(code, timeout, memory_mb)[0]


@cache
def protections() -> dict[str, bool]:
    """Which guards are in force on this system; the module's docstring says what each one does."""
    in_force = _run("", timeout=30, memory_mb=256)[1]
    return {guard.__name__: guard.__name__ in in_force for guard in child.GUARDS}


def _run(
    code: str, timeout: float, memory_mb: int, without: tuple[str, ...] = ()
) -> tuple[SandboxResult, list[str]]:
    """A result and the guards that were in force; tests leave guards out to see what remains."""
    if not 0 < timeout < math.inf or memory_mb < MIN_MEMORY_MB:
        raise ValueError(f"timeout must be positive and memory_mb at least {MIN_MEMORY_MB}")
    deadline = time.monotonic() + timeout
    secret = secrets.token_hex(16).encode()  # goes in before the program and comes back before the result
    python = [sys.executable, "-I", "-S", "-B", "-X", "utf8", str(child.__file__)]
    arguments = [str(os.getpid()), str(math.ceil(timeout) + 1), str(memory_mb), *without]
    with tempfile.TemporaryDirectory(prefix="sandbox-", ignore_cleanup_errors=True) as scratch:
        process = subprocess.Popen(
            [*python, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,  # the result channel
            cwd=scratch,
            env={},
            start_new_session=True,
        )
        try:
            assert process.stdin  # a pipe
            with suppress(BrokenPipeError), process.stdin as pipe:
                pipe.write(secret + b"\n" + code.encode("utf-8", "surrogatepass"))
            stdout, channel, error = _read(process, deadline)
        finally:
            _end(process)
    start, _, message = channel.partition(b"\n")
    value = None
    if start.startswith(b"ready") and not error:
        value, error = _result(message, secret, process.returncode)
    elif not error:
        raise SandboxError(f"the sandbox cannot start here: {channel[-500:].decode(errors='replace')}")
    result = SandboxResult(error is None, value, stdout.decode(errors="replace"), error)
    return result, start.decode(errors="replace").split()[1:]


def _read(process: subprocess.Popen[bytes], deadline: float) -> tuple[bytes, bytes, str | None]:
    """Read stdout and the result channel until both are closed; else say what went wrong."""
    texts: dict[Any, bytes] = {process.stdout: b"", process.stderr: b""}
    error = None
    with selectors.DefaultSelector() as selector:
        for pipe in texts:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map() and not error:
            for key, _ in selector.select(max(0, deadline - time.monotonic())):
                chunk = os.read(key.fd, 65_536)
                texts[key.fileobj] += chunk
                if not chunk:
                    selector.unregister(key.fileobj)
                if len(texts[key.fileobj]) > OUTPUT_LIMIT:
                    error = f"OutputError: more than {OUTPUT_LIMIT:,} bytes of output"
            if time.monotonic() >= deadline:
                error = error or "TimeoutError: the time was up before the program was done"
    return texts[process.stdout][:OUTPUT_LIMIT], texts[process.stderr][:OUTPUT_LIMIT], error


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and its group. Only then is it waited for: until then its number stays its own."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
    for pipe in filter(None, (process.stdout, process.stderr)):
        pipe.close()


def _result(message: bytes, secret: bytes, exit_code: int) -> tuple[Any, str | None]:
    """Value and error from the result channel, which a hostile program may have written to.

    Whoever finds the secret may name any value, as every program may; but it counts only after a clean end.
    """
    if exit_code < 0:
        return None, f"ProcessError: killed by {_signal_name(-exit_code)}"
    if exit_code:
        return None, f"ProcessError: ended itself with exit code {exit_code}"
    if not message:
        return None, "ProcessError: ended itself with exit code 0, without a result"
    with suppress(ValueError, RecursionError):
        result = json.loads(message.removeprefix(secret)) if message.startswith(secret) else None
        json.dumps(result, ensure_ascii=False).encode()  # half of a surrogate pair fits in no file
        if isinstance(result, dict) and result.keys() == {"value", "error"}:
            value, error = result["value"], result["error"]
            if error is None or (isinstance(error, str) and value is None):
                return value, error
    return None, "ProcessError: what came back is not a result"


def _signal_name(number: int) -> str:
    """Its name; most real-time signals have none."""
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"
