"""Trainings that are killed or told to stop, several times each, and resumed: as if nothing had been."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lib.methods.training import last_checkpoint
from lib.studies.stand_in import completion, serving

from .campaign import Found
from .children import Fault, appears, ended, start
from .trainings import SAVED, STEPS, TRAININGS, base, differences, left_by

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
EVENTS = 150  # changes to files that a training makes, about
HOW = ("moment", "moment", "file", "state", "result", "signal")


def case(rng: random.Random, folder: Path, number: int) -> Found:
    """One training, stopped one to three times, against the same one left alone."""
    return stopped(rng, folder, rng.choice(list(TRAININGS)), rng.choices(HOW, k=rng.randint(1, 3)))


def stopped(rng: random.Random, folder: Path, training: str, hows: list[str]) -> Found:
    """One training, stopped in these ways, then run to its end."""
    whole, seconds = straight(training, folder.parent)
    broken, said = [], []
    with asked(training, folder.parent) as (model, calls):
        for how in hows:
            said.append(_stop(rng, how, training, folder, model, seconds, broken))
        _resumed_where_it_was(training, folder, model, broken)
    if paid := sum(calls.values()) - 40 - 4 * len(hows):
        broken += [f"{paid} requests were paid for twice"] if paid > 0 else []
    if differing := differences(whole, left_by(folder)):
        broken.append(f"differs in {differing}")
    return Found(f"{training}: {', '.join(said)}", 1, broken)


def straight(training: str, root: Path) -> tuple[dict[str, Any], float]:
    """What a training leaves that nobody disturbs, and how long it takes; made once."""
    folder = root / "straight" / training
    if not (folder / "log.txt").exists() or not _duration(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with asked(training, root) as (model, _):
            code = ended(start(training, folder, model))
        assert code == 0, f"{training} fails by itself: {last_words(folder)}"
    return left_by(folder), _duration(folder)


def _duration(folder: Path) -> float:
    """Seconds of a training, as its child said them at the end; 0 where it did not come to it."""
    found = re.search(r"^done after ([\d.]+) s$", (folder / "log.txt").read_text(), re.M)
    return float(found[1]) if found else 0.0


@contextmanager
def asked(training: str, root: Path) -> Iterator[tuple[str, dict[str, int]]]:
    """What a training starts from: a small model, or a slow chat server and how often each prompt came."""
    if training != "server cache":
        yield base(root), {}
        return

    def slowly(prompt: str, attempt: int) -> tuple[int, Any]:
        time.sleep(0.05)
        return 200, completion(f"the answer to {prompt}")

    with serving(slowly) as (url, calls, _):
        yield url, calls


def _stop(
    rng: random.Random, how: str, training: str, folder: Path, model: str, seconds: float, broken: list[str]
) -> str:
    """Begin the training and stop it in one way; says what was done."""
    event = round(EVENTS ** rng.random()) if how == "file" else 0
    wait, number = rng.uniform(0.3, 1) * seconds, rng.choice(SIGNALS) if how == "signal" else signal.SIGKILL
    process = start(training, folder, model, fault=Fault("kill" if event else "", event))
    if how in ("moment", "signal"):
        process.join(wait)
    elif how in ("state", "result"):
        step = 2 * rng.randint(1, STEPS // 2)
        appears(
            f"checkpoint/checkpoint-{step}/trainer_state.json" if how == "state" else "checkpoint/result",
            folder,
            process,
        )
        time.sleep(rng.choice((0, 0.01, 0.1)))
    if not event and process.exitcode is None:
        os.kill(process.pid or 0, number)
    code = ended(process)
    done = {"moment": f"SIGKILL after {wait:.1f} s", "file": f"SIGKILL at change {event} of a file"}
    done |= {"signal": f"{number.name} after {wait:.1f} s"}
    place = done.get(how, f"SIGKILL as {how} appears")
    if code is None:
        broken.append(f"hangs after {place}")
    elif how == "signal" and code != 0:
        _was_saved(training, folder, place, broken)
    return place + (" (it had ended)" if code == 0 else "")


def _was_saved(training: str, folder: Path, place: str, broken: list[str]) -> None:
    """A training that had begun to step has said that it saved, unless its last step lies there already."""
    log, kept = (folder / "log.txt").read_text(), last_checkpoint(folder / "checkpoint")
    stepped = re.search(r"^(step|update) +\d+ of", log, re.M) and training in (*SAVED, "bandit")
    if stepped and "saved at" not in log and not (kept and kept.name == f"checkpoint-{STEPS}"):
        broken.append(f"{place}: it did not save")


def _resumed_where_it_was(training: str, folder: Path, model: str, broken: list[str]) -> None:
    """Run to the end; no step is done again that a whole checkpoint holds."""
    kept = last_checkpoint(folder / "checkpoint")
    if (code := ended(start(training, folder, model))) != 0:
        broken.append(
            "the resumed run hangs" if code is None else f"the resumed run fails: {last_words(folder)}"
        )
    first = re.search(r"^step +(\d+) of", (folder / "log.txt").read_text(), re.M)
    if kept and first and int(first[1]) <= int(kept.name.rpartition("-")[2]):
        broken.append(f"{kept.name} was there, and it went on at step {first[1]}")


def last_words(folder: Path) -> str:
    """The last line of a child's log."""
    return (folder / "log.txt").read_text(errors="replace").strip().splitlines()[-1:].__str__()[2:-2]
