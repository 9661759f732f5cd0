"""What runs inside the sandbox: shut every door, then the program. Started by lib.sandbox.run.

Arguments: parent's process id, CPU seconds, memory in MB, names of guards to leave out (for tests).
Standard input: a secret on one line, then the program. Standard error, as the parent opened it, is the
result channel: one line with the guards in force, written before the program starts; then the secret
and the result as JSON. Imports are few (no pathlib, contextlib, json) because every program pays for them.
"""

# ruff: noqa: PTH109, PTH110, PTH120, PTH123, SIM105

import _ast
import os
import resource
import signal
import struct
import sys
from _json import encode_basestring_ascii

TYPE_CHECKING = False  # for the type checker alone: the child pays for no import of types
if TYPE_CHECKING:
    import ctypes
    from collections.abc import Callable, Iterable
    from typing import Any

MB = 2**20
FILE_MB = 16  # the largest file, and all of the scratch folder where it is private
RESULT_LIMIT = 65_536  # characters
PROGRAM = "<program>"
LIBRARIES = (
    os.path.dirname(os.__file__),
    sys.base_prefix + "/lib",
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
)
LOADER_CACHE = "/etc/ld.so.cache"
# Without Landlock no file may be opened, so the usual imports are loaded before, these with all they need.
COMMON_MODULES = ("calendar", "cmath", "dataclasses", "heapq", "json", "statistics", "textwrap", "typing")

# System calls a computation needs, as (x86-64, arm64). Everything else is refused: no call that makes a
# process, thread or socket, sends a signal, or reaches into another process is on this list. Nor are
# fcntl and ioctl: they can make the kernel send signals or push input to a terminal.
# fmt: off
CALLS: dict[str, tuple[int, int | None]] = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "fstat": (5, 80), "lseek": (8, 62), "mmap": (9, 222),
    "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "pread64": (17, 67), "readv": (19, 65),
    "writev": (20, 66), "mremap": (25, 216), "madvise": (28, 233), "dup": (32, 23), "nanosleep": (35, 101),
    "getpid": (39, 172), "exit": (60, 93), "uname": (63, 160), "getcwd": (79, 17), "gettimeofday": (96, 169),
    "getrusage": (98, 165), "sysinfo": (99, 179), "sigaltstack": (131, 132), "gettid": (186, 178),
    "futex": (202, 98), "restart_syscall": (219, 128), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "exit_group": (231, 94),
    "getrandom": (318, 278),
}
FILE_CALLS: dict[str, tuple[int, int | None]] = {  # these only where Landlock says which files
    "openat": (257, 56), "ftruncate": (77, 46), "getdents64": (217, 61), "newfstatat": (262, 79),
    "statx": (332, 291), "readlinkat": (267, 78), "faccessat": (269, 48), "faccessat2": (439, 439),
    "unlinkat": (263, 35), "renameat": (264, 38),
    # the older forms, which arm64 never had
    "open": (2, None), "stat": (4, None), "lstat": (6, None), "access": (21, None), "readlink": (89, None),
    "unlink": (87, None), "rename": (82, None),
}
# fmt: on
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


class Job:
    """What the parent asked for, and the guards set so far."""

    def __init__(self, arguments: list[str]) -> None:
        self.parent, self.cpu_seconds, self.memory_mb = map(int, arguments[:3])
        self.without = arguments[3:]
        self.scratch = os.path.realpath(os.getcwd())
        self.in_force: list[str] = []


# ---- guards: each raises where the system lacks what it needs ------------------------------------


def private_scratch(job: Job) -> None:
    """Mount a small file system, in memory, over the scratch folder: it is full early and dies with us."""
    libc = _libc()
    user, group = os.getuid(), os.getgid()
    _call(libc.unshare, 0x10000000 | 0x20000)  # CLONE_NEWUSER allows CLONE_NEWNS to everybody
    ids = {"setgroups": "deny", "uid_map": f"{user} {user} 1", "gid_map": f"{group} {group} 1"}
    for name, text in ids.items():
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    _call(libc.mount, None, b"/", None, 0x4000 | 0x40000, None)  # MS_REC | MS_PRIVATE
    options = f"size={FILE_MB}m,nr_inodes=1k,mode=700".encode()
    guarded = 2 | 4 | 8  # nosuid, nodev, noexec
    _call(libc.mount, b"tmpfs", os.fsencode(job.scratch), b"tmpfs", guarded, options)
    os.chdir(job.scratch)


def limits(job: Job) -> None:
    """Limits that every process can set for itself; none can be raised again."""
    _limit(resource.RLIMIT_CPU, job.cpu_seconds)
    _limit(resource.RLIMIT_FSIZE, FILE_MB * MB)
    _limit(resource.RLIMIT_NOFILE, 64)
    _limit(resource.RLIMIT_NPROC, 0)
    _limit(resource.RLIMIT_CORE, 0)


def memory_limit(job: Job) -> None:
    """A limit on the address space. Linux only: macOS takes the number and does not keep to it."""
    _libc()
    _limit(resource.RLIMIT_AS, job.memory_mb * MB)


def no_privileges(job: Job) -> None:
    """Give up every capability, those of root too, and the way to new ones."""
    libc = _libc()
    _call(libc.prctl, 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    _call(libc.capset, struct.pack("Ii", 0x20080522, 0), bytes(24))


def parent_death(job: Job) -> None:
    """Die when the parent dies, however it dies."""
    _call(_libc().prctl, 1, int(signal.SIGKILL), 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != job.parent:
        os._exit(1)


def landlock(job: Job) -> None:
    """Let the kernel refuse every file but Python's libraries, to read, and a private scratch folder."""
    libc = _libc()
    execute, write, read, list_folder, remove, make, all_rights = 1, 2, 4, 8, 32, 256, (1 << 13) - 1
    ruleset = _call(libc.syscall, 444, struct.pack("Q", all_rights), 8, 0)
    rules = dict.fromkeys(LIBRARIES, execute | read | list_folder) | {LOADER_CACHE: read}
    # A scratch folder on the disk stays empty: nothing would stop a program from filling the disk.
    private = "private_scratch" in job.in_force
    rules[job.scratch] = read | list_folder | (write | remove | make if private else 0)
    for path, rights in rules.items():
        if os.path.exists(path):
            file = os.open(path, os.O_PATH | os.O_CLOEXEC)
            _call(libc.syscall, 445, ruleset, 1, struct.pack("=Qi", rights, file), 0)
            os.close(file)
    _call(libc.syscall, 446, ruleset, 0)
    os.close(ruleset)


def seccomp(job: Job) -> None:
    """Let the kernel refuse every system call that is not on the list."""
    libc = _libc()
    import ctypes

    machine = os.uname().machine
    if machine not in MACHINES:
        raise OSError(f"no list of system calls for {machine}")
    column = list(MACHINES).index(machine)
    calls = CALLS | FILE_CALLS if "landlock" in job.in_force else CALLS
    if calls is CALLS:
        for name in COMMON_MODULES:
            __import__(name)
    load, if_equal, give = 0x20, 0x15, 0x06  # instructions: (code, jump if true, jump if false, operand)
    allow, refuse = (give, 0, 0, 0x7FFF0000), (give, 0, 0, 0x00050000 | 1)  # refused calls fail with EPERM
    steps = [(load, 0, 0, 4), (if_equal, 1, 0, MACHINES[machine]), refuse, (load, 0, 0, 0)]
    for numbers in calls.values():
        if (number := numbers[column]) is not None:
            steps += [(if_equal, 0, 1, number), allow]
    steps.append(refuse)
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    _call(libc.prctl, 22, 2, struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(code)), 0, 0)


def audit_hook(job: Job) -> None:
    """A second line inside the interpreter; the only one for files and network where the kernel has none."""
    scratch = [job.scratch]
    readable = [*scratch, *LIBRARIES, *map(os.path.realpath, LIBRARIES)]
    to_write = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

    def check(event: str, arguments: tuple) -> None:
        if event == "open":
            path, _, flags = arguments
            allowed = isinstance(path, int) or _inside(path, scratch if flags & to_write else readable)
        elif event in ("os.listdir", "os.scandir"):
            allowed = _inside(arguments[0] or ".", readable)
        elif event in ("os.remove", "os.rename"):
            paths, folders = arguments[: len(arguments) // 2], arguments[len(arguments) // 2 :]
            allowed = all(_inside(path, scratch) for path in paths) and all(fd == -1 for fd in folders)
        elif event == "import":
            allowed = arguments[0] not in ("_ctypes", "_posixsubprocess")
        else:
            allowed = event in ("os.putenv", "os.unsetenv") or not event.startswith(
                ("os.", "socket.", "subprocess.", "pty.", "ctypes.", "signal.")
            )
        if not allowed:
            raise PermissionError(1, f"the sandbox does not allow {event}")

    sys.addaudithook(check)


def _inside(path: str | bytes, folders: "Iterable[str]") -> bool:
    real = os.path.realpath(os.fsdecode(path))
    return any(real == folder or real.startswith(folder + "/") for folder in folders)


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def _libc() -> "ctypes.CDLL":
    """The C library of Linux; raises OSError elsewhere."""
    if sys.platform != "linux":
        raise OSError("only Linux has this")
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def _call(function: "Callable", *arguments: object) -> int:
    """Call into C, numbers as wide as the kernel reads them; raises OSError."""
    import ctypes

    result = function(*(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


# What may fail comes in this order: namespaces before rights are given up, Landlock before seccomp, which
# forbids the call; the hook last, since it forbids ctypes.
GUARDS = (private_scratch, limits, memory_limit, no_privileges, parent_death, landlock, seccomp, audit_hook)


# ---- the program ---------------------------------------------------------------------------------


def run(code: bytes) -> str:
    """Run a program; its result as JSON: {"value": ..., "error": null or text}."""
    spare = bytearray(4 * MB)  # given back after an error, so that a full memory can be reported
    module = type(sys)("__main__")
    sys.modules["__main__"] = module  # the program finds itself there, not this file
    names = module.__dict__
    try:
        tree: Any = compile(code, PROGRAM, "exec", _ast.PyCF_ONLY_AST)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], _ast.Expr) else None
        exec(compile(tree, PROGRAM, "exec"), names)
        value = eval(compile(_ast.Expression(last.value), PROGRAM, "eval"), names) if last else None
        if "answer" in names and not callable(names["answer"]):
            value = names["answer"]
        text = as_json(value)
        if len(text) > RESULT_LIMIT:
            raise ValueError(f"the value takes {len(text):,} characters; {RESULT_LIMIT:,} are allowed")
    except BaseException as error:
        del spare
        return f'{{"value": null, "error": {as_json(describe(error))}}}'
    return f'{{"value": {text}, "error": null}}'


def describe(error: BaseException) -> str:
    """Type, message and line of an error, at most about 500 characters."""
    line = error.lineno if isinstance(error, SyntaxError) and error.filename == PROGRAM else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == PROGRAM:
            line = trace.tb_lineno
        trace = trace.tb_next
    message = (error.msg if isinstance(error, SyntaxError) else str(error))[:400]
    return type(error).__name__ + (f": {message}" if message else "") + (f" (line {line})" if line else "")


def as_json(value: object) -> str:
    """A value as JSON. Other than plain data becomes text; the json module would cost 6 ms to import."""
    if value is None or value is True or value is False:
        return {None: "null", True: "true", False: "false"}[value]
    if type(value) is int:
        return repr(value)
    if type(value) is float:
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(repr(value), repr(value))
    if isinstance(value, (list, tuple)):
        return "[" + ",".join([as_json(item) for item in value]) + "]"
    if isinstance(value, dict):
        return "{" + ",".join([f"{as_json(str(key))}:{as_json(item)}" for key, item in value.items()]) + "}"
    # Half of a surrogate pair is a legal str that no file can hold.
    return encode_basestring_ascii(str(value).encode("utf-8", "replace").decode())


def main() -> None:
    """Set the guards and say which hold, run the program, give its result, end whatever it left behind."""
    job = Job(sys.argv[1:])
    secret, _, code = sys.stdin.buffer.read().partition(b"\n")
    channel = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    for guard in GUARDS:
        try:
            if guard.__name__ not in job.without:
                guard(job)
                job.in_force.append(guard.__name__)
        except (OSError, ValueError, AttributeError):
            pass  # this system does not have it; the parent is told
    sys.argv[:] = [PROGRAM]
    os.environ.clear()
    os.write(channel, " ".join(["ready", *job.in_force]).encode() + b"\n")
    stdout = sys.stdout  # the program may put something else there
    result = run(code)
    try:
        stdout.flush()
    except (OSError, ValueError):
        pass  # the program closed it
    os.write(channel, secret + result.encode())
    os._exit(0)


if __name__ == "__main__":
    main()
