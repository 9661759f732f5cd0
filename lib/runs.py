"""Run folders: where a run keeps its configuration, metrics and checkpoint, and where they came from.

    runs/<profile>/<notebook>[/<run name>]/config.json  metrics.jsonl  metrics.json  numbers.json
                                            rollouts/  checkpoint/

Every file is replaced in one step, so a reader never sees half of one, and a killed run resumes. What was
trained is kept with the settings that decide it: the same settings find it again, others train beside it.
"""

import hashlib
import json
import math
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from lib.tasks import Rollout
from lib.writing import HeldError as HeldError
from lib.writing import KeptLines, explained, held, read_json, write_atomically, write_json, write_rows
from lib.writing import RunFolderError as RunFolderError

ROOT = Path(__file__).resolve().parent.parent
# What is in a run folder, of notebooks too: a run by that name would be taken for it. The last are files.
OWN = "checkpoint, previous, rollouts, result, policy, replies, embeddings, sft_set, one_step, grpo, ada_grpo"
OWN += ", ddp, fsdp2, vllm, solutions, json, jsonl, yaml, ipynb, md"
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "numpy")


class CheckpointError(RuntimeError):
    """A checkpoint is missing or is not the one its provenance describes."""


def runs_folder() -> Path:
    """The folder of all runs: `runs/` beside `lib/`, or wherever RUNS_DIR points."""
    return Path(os.environ.get("RUNS_DIR") or ROOT / "runs")


def located(path: str) -> Path:
    """Where the path of a parameter lies: `runs/...` in the run folder, others from the project's root."""
    first, _, rest = path.partition("/")
    return runs_folder() / rest if first == "runs" else ROOT / Path(path).expanduser()


class Run:
    """One run of one notebook under one profile."""

    def __init__(self, folder: Path, config: Mapping[str, Any]):
        self.folder, self.config = folder, dict(config)
        self._logged = KeptLines(folder / "metrics.jsonl")

    @property
    def checkpoint(self) -> Path:
        """Where this run keeps its checkpoint."""
        return self.folder / "checkpoint"

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one row to metrics.jsonl."""
        self._logged.append([{"step": step, **metrics}])

    def rewind(self, step: int) -> None:
        """Drop the rows after `step`: call it when training resumes from there."""
        write_rows(self._logged.path, [row for row in self.metrics() if row["step"] <= step])

    def metrics(self) -> list[dict[str, Any]]:
        """The rows logged so far."""
        return self._logged.read()

    def keep_rollouts(self, name: str, rollouts: Iterable[Rollout]) -> None:
        """Write the rollouts of one measurement to rollouts/<name>.parquet, a tenth of their size as text.

        A character that UTF-8 does not have, as in a reply that was cut within one, becomes a "?".
        """
        import pyarrow as pa  # here, since whoever only opens a run folder need not wait for it
        from pyarrow import parquet

        rows = [asdict(rollout) for rollout in rollouts]
        for row in rows:
            row |= {k: v.encode("utf-8", "replace").decode() for k, v in row.items() if isinstance(v, str)}
        buffer = pa.BufferOutputStream()
        parquet.write_table(pa.Table.from_pylist(rows), buffer, compression="zstd")
        write_atomically(self.folder / "rollouts" / f"{name}.parquet", buffer.getvalue().to_pybytes())

    def finish(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Write metrics.json, the result of the run, and give it back."""
        write_json(self.folder / "metrics.json", metrics)
        return dict(metrics)

    def quote(self, /, **numbers: Any) -> None:
        """Add numbers that the notebook's text quotes, plain or in dicts, to numbers.json.

        Shares stay shares: the text may say them in per cent. What is not finite (nothing was measured)
        is left out; ValueError for what is no number.
        """
        path = self.folder / "numbers.json"
        write_json(path, _merged(read_json(path) if path.exists() else {}, numbers))

    # -- what was trained, and with which settings

    def claim(
        self, settings: Mapping[str, Any], *, say: Callable[[str], None] | None = None
    ) -> dict[str, Any] | None:
        """Make checkpoint/ and metrics.jsonl those of `settings`: the facts of a finished training, or None.

        `settings` holds all that decides the result, rows as a `digest`. What other settings left moves to
        previous/<their hash>/, and comes back when they do; what differs is said. Of several processes the
        first does that, and the others wait for it.
        """
        say, new = say or (lambda line: None), json.loads(json.dumps(dict(settings)))
        if is_first_process():
            self._make_room(self._settings(), new, say)
        while self._settings() != new:
            time.sleep(0.1)
        finished = self.checkpoint / "finished.json"
        if not finished.exists():
            return None
        record = read_json(finished)
        say(f"trained before, on {record['date']}, with these settings: {_shown(self.checkpoint)} is used")
        return record["facts"]

    def keep(self, facts: Mapping[str, Any]) -> None:
        """Mark the training in checkpoint/ as finished; `claim` with the same settings gives `facts` back."""
        write_json(self.checkpoint / "finished.json", provenance(facts=dict(facts)))

    def alone(self) -> AbstractContextManager[None]:
        """Hold the folder against other processes; HeldError where one trains in it."""
        remedy = "wait for it, or name this run (RUN_NAME)."
        return held(self.folder / ".lock", f"Another process trains in {self.folder}: {remedy}")

    def _settings(self) -> dict[str, Any]:
        with suppress(FileNotFoundError):  # the first process may move it at any time
            return read_json(self.checkpoint / "config.json")
        return {}

    def _make_room(self, old: Mapping[str, Any], new: Mapping[str, Any], say: Callable[[str], None]) -> None:
        """Put what other settings left in their place, and what these left here, or a new checkpoint folder.

        What a kill left of either move is moved now: the log goes first and comes back last.
        """
        if old != new and self.checkpoint.exists():
            place = self.folder / "previous" / (digest(old) if old else _now())
            _move(("metrics.jsonl", "checkpoint"), self.folder, place)
            kept = f"the last are kept in {_shown(place)}"
            say(f"other settings than last time ({_differences(old, new)}); {kept}")
        place = self.folder / "previous" / digest(new)
        if place.exists():
            _move(sorted(path.name for path in place.iterdir()), place, self.folder)
            place.rmdir()
        elif not self._settings():
            write_json(self.checkpoint / "config.json", new)


def run_folder(notebook: str, profile: str, name: str = "") -> Path:
    """Where a notebook keeps its run; `name` tells the runs of a sweep apart."""
    folder = runs_folder() / profile / notebook / name
    if not name:
        return folder
    if not re.fullmatch(r"[A-Za-z0-9][\w.=+-]*", name) or name.lower().split(".")[-1] in OWN.split(", "):
        rule = "may hold letters, digits and _ . = + -, but neither be nor end in one of"
        raise ValueError(f"RUN_NAME {rule} {OWN}; got {name!r}")
    ours = ("config.json", "parameters.yaml")  # the second: the runner's
    if folder.exists() and any(folder.iterdir()) and not any((folder / file).exists() for file in ours):
        raise ValueError(f"RUN_NAME {name!r}: {_shown(folder)} holds something else; choose another name")
    return folder


def start_run(notebook: str, profile: str, config: Mapping[str, Any], name: str = "") -> Run:
    """Open the run folder of a notebook and write its config.json.

    Where the configuration is another than last time, the old one and its results go to `previous/`. The new
    one is written last: a kill leaves it beside no results of the old.
    Checkpoint and log belong to the settings of the training alone: see `Run.claim`.
    """
    _code_version()
    folder = run_folder(notebook, profile, name)
    path, place = folder / "config.json", folder / "previous" / _now()
    if path.exists() and (old := read_json(path)) != json.loads(json.dumps(dict(config))):
        write_json(place / path.name, old)
        _move(("metrics.json", "numbers.json", "rollouts"), folder, place)
    write_json(path, config)
    (folder / "numbers.json").unlink(missing_ok=True)
    return Run(folder, config)


def digest(value: Any) -> str:
    """A short hash of anything that JSON can hold, tensors too, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, default=lambda tensor: tensor.detach().cpu().tolist())
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _merged(old: Mapping[str, Any], new: Mapping[Any, Any], place: str = "") -> dict[str, Any]:
    """Nested numbers over older ones; no key holds a dot, for `a.b` looks them up."""
    merged = dict(old)
    for key, value in new.items():
        name, path = str(key), f"{place}{key}"
        if "." in name:
            raise ValueError(f"quote: {path!r} cannot be looked up as a.b; use keys without a dot")
        if isinstance(value, Mapping):
            inner = merged.get(name)
            merged[name] = _merged(inner if isinstance(inner, dict) else {}, value, f"{path}.")
        elif isinstance(value, bool) or not isinstance(value, Real):
            raise ValueError(f"quote: {path} must be a number, got {value!r}")
        elif math.isfinite(value):
            merged[name] = int(value) if isinstance(value, Integral) else float(value)
    return merged


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What changed, in words: "learning_rate 0.001, was 0.01"."""
    if not old:
        return "which were not kept"
    names = [name for name in {**new, **old} if old.get(name) != new.get(name)]
    return ", ".join(f"{name} {new.get(name)!s:.60}, was {old.get(name)!s:.60}" for name in names)


def _move(names: Iterable[str], folder: Path, place: Path) -> None:
    """Rename what there is of these names in a folder into another one."""
    with explained(place):
        place.mkdir(parents=True, exist_ok=True)
        for name in names:
            if (folder / name).exists():
                (folder / name).rename(place / name)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")


# ---- provenance --------------------------------------------------------------------------------


def provenance(**facts: Any) -> dict[str, Any]:
    """Where a result comes from: the given facts, the commit, the versions, the machine and the time."""
    return {
        **facts,
        **_code_version(),
        "versions": {"python": platform.python_version()} | {p: metadata.version(p) for p in PACKAGES},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "date": datetime.now(UTC).date().isoformat(),
    }


def write_provenance(folder: Path, **facts: Any) -> None:
    """Write provenance.json for a checkpoint folder, with the SHA-256 of every file in it."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.name != "provenance.json")
    hashes = {file.name: sha256(file) for file in files}
    write_json(folder / "provenance.json", provenance(**facts) | {"sha256": hashes})


def check_provenance(folder: Path) -> dict[str, Any]:
    """Read provenance.json and compare every file with its SHA-256; raises CheckpointError."""
    path, place = folder / "provenance.json", _shown(folder)
    remedy = f"Restore it with `git checkout -- {place}`, or make it again with the notebook that trains it."
    try:
        record = json.loads(path.read_bytes())
        hashes = dict(record["sha256"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        fault = f"{path.name} is {'damaged' if path.exists() else 'missing'}"
        raise CheckpointError(f"There is no checkpoint at {place}: {fault}. {remedy}") from None
    for name, expected in hashes.items():
        if not (folder / name).exists():
            raise CheckpointError(f"The checkpoint {place} is not complete: {name} is missing. {remedy}")
        if sha256(folder / name) != expected:
            changed = f"The checkpoint file {_shown(folder / name)} is damaged or was changed"
            raise CheckpointError(f"{changed}: its SHA-256 is not the one in provenance.json. {remedy}")
    return record


def sha256(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal text."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def heard(react: Callable[[int, Any], None]) -> Iterator[None]:
    """Give the signals that stop a run to `react`, but those nohup ignores; only the main thread has them."""
    stops = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, a scheduler's end, a closed terminal
    here = stops if threading.current_thread() is threading.main_thread() else ()
    old = {n: signal.signal(n, react) for n in here if signal.getsignal(n) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def end_by(number: int, last: str) -> None:
    """End as a signal asks, `last` being saved: KeyboardInterrupt, or the process ends; 0 is no signal."""
    saved = f"saved at {last}; the same call goes on from there"
    if number and number != signal.SIGINT:
        print(saved, flush=True)
        signal.raise_signal(number)
    if number:
        raise KeyboardInterrupt(saved)


def is_first_process() -> bool:
    """Whether this process is alone, or the first of those that were launched together."""
    return os.environ.get("RANK", "0") == "0"


def peak_memory_mb(usage: resource.struct_rusage | None = None) -> float:
    """The most memory that this process, or the one that used so much, has held so far, in MB."""
    peak = (usage or resource.getrusage(resource.RUSAGE_SELF)).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _shown(path: Path) -> str:
    """A path as a reader knows it: relative to the project where it lies inside."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


@cache
def _code_version() -> dict[str, Any]:
    """The commit that this process runs; kept from the first call, since a long run may outlive it."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--", "lib")),
    }


def _git(*arguments: str) -> str | None:
    with suppress(OSError):  # git is not installed
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None
    return None
