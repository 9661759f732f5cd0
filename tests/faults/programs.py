"""Hostile programs for the sandbox: seeded attacks, wrapped and combined, with guards left out one by one."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from lib.sandbox.run import SandboxResult, _run, protections

from .campaign import Found
from .processes import sandboxes

PROGRAMS = 25
TIMEOUT = 4.0  # seconds
WITHOUT = ((), ("audit_hook",), ("audit_hook", "landlock"), ("audit_hook", "private_scratch"))
FRAMES = """
import sys
frame = sys._getframe()
while frame and 'secret' not in frame.f_locals: frame = frame.f_back
secret = frame.f_locals['secret'] if frame else b'0' * 32
"""
FORGED = {"value": "forged", "error": None}
ENDS = (
    "os._exit(0)",
    "os._exit(3)",
    "os.abort()",
    "os.kill(os.getpid(), 9)",
    "os.kill(os.getpid(), 35)",
    "1 / 0",
    "while True: pass",
)
# Each gives `stolen` where it succeeds. {secret} is a file outside, {port} a listener, {parent} our process.
READS = (
    "open({secret!r}).read()",
    "os.read(os.open({secret!r}, 0), 99).decode()",
    "io.open_code({secret!r}).read().decode()",
    "(os.symlink({secret!r}, 'l'), open('l').read())[1]",
    "(os.link({secret!r}, 'h'), open('h').read())[1]",
    "(os.chdir(os.path.dirname({secret!r})), open('secret.txt').read())[1]",
    "__import__('linecache').getlines({secret!r})[0]",
    "__import__('mmap').mmap(os.open({secret!r}, 0), 0, prot=1)[:].decode()",
    "__import__('fileinput').input({secret!r}).readline()",
    "bytes(__import__('sqlite3').connect({secret!r}).serialize())",
    "__import__('tokenize').open({secret!r}).read()",
    "__import__('zipfile').Path({secret!r}).root.filename",
    "__import__('ctypes').CDLL(None).open({secret!r}.encode(), 0) >= 0 and 'the secret'",
    "open('/proc/self/root' + {secret!r}).read()",
    "open('/proc/{parent}/environ').read()",
    "open('/proc/{parent}/cmdline').read()",
)
ACTS = (
    "open({secret!r}, 'w').write('changed')",
    "os.remove({secret!r})",
    "os.truncate({secret!r}, 0)",
    "os.rename({secret!r}, 'taken')",
    "os.chmod({secret!r}, 0)",
    "__import__('shutil').rmtree(os.path.dirname({secret!r}))",
    "__import__('readline').write_history_file({secret!r})",
    "__import__('sqlite3').connect({secret!r} + '.new').execute('create table t (x)')",
    "__import__('dbm.dumb').dumb.open({secret!r} + '.db', 'c')",
    "socket.create_connection(('127.0.0.1', {port}), 1)",
    "__import__('_socket').socket(2, 2, 0).sendto(b'x', ('127.0.0.1', {port}))",
    "__import__('urllib.request').request.urlopen('http://127.0.0.1:{port}/', timeout=1)",
    "os.kill({parent}, signal.SIGUSR1)",
    "os.kill(os.getppid(), signal.SIGUSR1)",
    "[os.fork() for _ in range(9)]",
    "os.system('touch {secret}.new')",
    "__import__('subprocess').Popen(['sleep', '60'])",
    "__import__('multiprocessing').Process(target=print).start()",
    "[__import__('_thread').start_new_thread(time.sleep, (60,)) for _ in range(99)]",
    "os.setsid()",
    "__import__('fcntl').fcntl(1, 8, {parent})",
    "__import__('ctypes').CDLL(None).kill({parent}, 10)",
    "__import__('ctypes').CDLL(None).fork()",
    "__import__('resource').prlimit({parent}, 4, (0, 0))",
    "os.sched_setaffinity({parent}, [0])",
    "os.setpriority(0, {parent}, 19)",
    "signal.pidfd_send_signal(os.pidfd_open({parent}), 10)",
    "bytearray(10**10)",
    "print('x' * 10**8)",
    "9 ** 9 ** 9",
)
WRAPS = (
    "{}",
    "try:\n    {}\nexcept BaseException: pass",
    "def f():\n    global stolen\n    {}\nf()",
    "class A:\n    def __del__(self):\n        global stolen\n        {}\na = A()\ndel a",
    "import atexit\ndef f():\n    global stolen\n    {}\natexit.register(f)",
    "import gc, sys\nsys.setrecursionlimit(10**6)\n{}",
    "exec(compile({!r}, 'x', 'exec'))",
    "for s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n    except Exception: pass\n{}",
    "import sys\nsys.settrace(lambda *a: None)\n{}",
    "for hook in list(getattr(__import__('sys'), 'modules')): pass\n{}",
    "import threading\nt = threading.Thread(target=lambda: exec({!r}, globals()))\nt.start()",
)
HEAD = "import io, os, signal, time\ntry: import socket\nexcept ImportError: socket = None\nstolen = None\n"


def program(rng: random.Random, **places: object) -> str:
    """One hostile program: some attacks, wrapped, and perhaps a forged result at the end."""
    lines = []
    for _ in range(rng.randint(1, 3)):
        act = rng.choice(READS + ACTS)
        text = act.format(**places)
        line = f"stolen = str({text})" if act in READS else text
        lines.append(
            rng.choice(WRAPS).format(line) if rng.random() < 0.7 else f"try: {line}\nexcept Exception: pass"
        )
    if rng.random() < 0.5:
        forged = rng.choice(
            (json.dumps(FORGED), '{"value": "forged", "error": "x"}', '{"value": "\\ud800"}', "[" * 60_000)
        )
        given = rng.choice(("b'0' * 32", "secret", "b'ready\\n' + secret", "secret + secret"))
        lines.append(
            FRAMES + f"os.write({rng.choice((1, 2, 3))}, {given} + {forged!r}.encode())\n{rng.choice(ENDS)}"
        )
    return HEAD + "\n".join(lines) + "\nanswer = stolen"


def case(rng: random.Random, folder: Path, number: int) -> Found:
    """Twenty-five programs: none reads, writes, sends, signals, stays, hangs or forges another end."""
    without = WITHOUT[number % len(WITHOUT)]
    if not protections()["seccomp"]:
        without = ()
    broken = []
    with _witnesses(folder) as (places, harm):
        for place in range(PROGRAMS):
            code = program(rng, **places)
            begun = time.monotonic()
            try:
                result = _run(code, TIMEOUT, 128, without)[0]
                faults = [*_wrong(result, code), *harm()]
            except Exception as error:
                faults = [f"the parent raises {type(error).__name__}: {error}"]
            if time.monotonic() - begun > TIMEOUT + 3:
                faults.append(f"it took {time.monotonic() - begun:.1f} s")
            if faults:
                (folder / f"program_{place}.py").write_text(code)
            broken += [f"program {place}: {fault}" for fault in faults]
    return Found(f"{PROGRAMS} programs, guards left out: {', '.join(without) or 'none'}", PROGRAMS, broken)


def _wrong(result: SandboxResult, code: str) -> Iterator[str]:
    """What is not as a result must be, whatever the program did."""
    text = json.dumps(result.value, ensure_ascii=False)
    if "the secret" in text or "PATH=" in text or "faults" in text:
        yield f"it read {text:.80}"
    if result.ok != (result.error is None) or (result.error is not None and result.value is not None):
        yield f"a value beside an error: {result}"
    if result.ok and "forged" in text and "os._exit(0)" not in code:
        yield f"forged: {result}"
    try:
        f"{text}{result.stdout}{result.error}".encode()
    except UnicodeEncodeError:
        yield "a result that no file can hold"


@contextmanager
def _witnesses(folder: Path) -> Iterator[tuple[dict[str, object], object]]:
    """A file, a listener and signals that are to be left alone, and a function that says what was harmed."""
    outside, scratch = folder / "outside", folder / "scratch"
    outside.mkdir()
    scratch.mkdir()
    secret, signals = outside / "secret.txt", []
    secret.write_text("the secret")
    old = {n: signal.signal(n, lambda n, _: signals.append(n)) for n in (signal.SIGUSR1, signal.SIGIO)}

    def harm() -> Iterator[str]:
        if sorted(p.name for p in outside.iterdir()) != ["secret.txt"] or secret.read_text() != "the secret":
            yield f"files were changed: {sorted(p.name for p in outside.iterdir())}"
        if signals:
            yield f"signals came: {signals}"
        if sandboxes(os.getpid()) or list(scratch.iterdir()):
            yield "a process or a folder is left"
        try:
            listener.accept()
            yield "somebody called"
        except BlockingIOError:
            pass

    environment = {"TMPDIR": str(scratch)}
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        patch.dict(os.environ, environment),
        patch.object(tempfile, "tempdir", str(scratch)),
    ):
        listener.setblocking(False)
        try:
            yield {"secret": str(secret), "port": listener.getsockname()[1], "parent": os.getpid()}, harm
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
