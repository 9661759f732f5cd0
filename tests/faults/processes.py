"""Processes that others started: who belongs to whom, and whether all are gone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


def family(pid: int) -> list[int]:
    """A process, the one that it started, and so on: notebook, launcher, ranks."""
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [pid, *(one for child in children for one in family(child))]


def left(pids: Sequence[int], within: float = 60) -> list[int]:
    """Those of these processes that are there after so long; one that nobody waited for is gone."""
    deadline = time.monotonic() + within
    while (there := [pid for pid in pids if _runs(pid)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    return there


def _runs(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    return False


def sandboxes(parent: int) -> list[int]:
    """Sandbox processes that `parent` started, found by their command line, whoever owns them now."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if any(word.endswith(b"/sandbox/child.py") for word in words) and str(parent).encode() in words:
                found.append(int(folder.name))
    return found
