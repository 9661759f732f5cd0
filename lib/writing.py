"""Files that are written whole or not at all, JSONL that grows, and locks."""

import fcntl
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class RunFolderError(OSError):
    """A run folder cannot be written or read; the message names the path and the remedy."""


class HeldError(RunFolderError):
    """Another process is at work where this one would begin."""


def write_json(path: Path, value: Any) -> None:
    """Write JSON, readable and in one step."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    """Write rows as JSONL for other processes to read; gives the path as text."""
    write_atomically(path, "".join(json.dumps(dict(row)) + "\n" for row in rows))
    return str(path)


class KeptLines:
    """A JSONL file that grows as results come. A last line that a kill cut short is left out."""

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> list[Any]:
        """What was stored so far; nothing where there is no file yet."""
        lines = self.path.read_bytes().split(b"\n")[:-1] if self.path.exists() else []
        remedy = "Delete that line, or the file to begin anew."
        return [_parsed(line, f"{self.path}, line {n},", remedy) for n, line in enumerate(lines, 1)]

    def append(self, rows: Iterable[Any]) -> None:
        """Store more."""
        with explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":
                        file.truncate(self.path.read_bytes().rfind(b"\n") + 1)
                file.write("".join(json.dumps(row) + "\n" for row in rows).encode())


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write text or bytes beside the target and rename it: the old file or the new one, never half of one."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write into a message a person can act on."""
    try:
        yield
    except RunFolderError:
        raise
    except OSError as error:
        raise RunFolderError(
            f"Cannot write {path}: {error.strerror or error}. Free some space, make the folder writable, or "
            "set the environment variable RUNS_DIR to a folder that is; what was written before is kept."
        ) from error


def read_json(path: Path) -> Any:
    """Read a JSON file; a damaged one is named."""
    return _parsed(path.read_bytes(), str(path), "Delete it and run again.")


def _parsed(content: bytes, place: str, remedy: str) -> Any:
    try:
        return json.loads(content.decode())
    except (ValueError, RecursionError) as error:  # what is no UTF-8 is a ValueError too
        raise RunFolderError(f"{place} is not JSON ({error}). {remedy}") from None


@contextmanager
def held(lock: Path, refusal: str) -> Iterator[None]:
    """Hold a lock file against other processes; HeldError with `refusal` where one has it."""
    with explained(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HeldError(refusal) from None
        yield
