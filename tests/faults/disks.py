"""Disks that fill up at a seeded moment: it is named, nothing hangs, and with space again all ends alike."""

import random
from pathlib import Path

from .campaign import Found
from .children import Fault, ended, start
from .kills import asked, last_words, straight
from .trainings import TRAININGS, differences, left_by

NAMED = (
    "No space left",
    "File too large",
    "Free some space",
    "write failed",
    "enforce fail",
    "Errno 28",
    "Errno 27",
)


def case(rng: random.Random, folder: Path, number: int) -> Found:
    """One training on a disk that is full from a change on, or takes no file beyond a size; then space."""
    training, event = rng.choice(list(TRAININGS)), round(120 ** rng.random())
    size = round(10 ** rng.uniform(2, 5.5)) if rng.random() < 0.5 else 0
    fault = Fault("limit" if size else "full", event, size)
    whole, _ = straight(training, folder.parent)
    broken = []
    with asked(training, folder.parent) as (model, _):
        code = ended(start(training, folder, model, fault=fault))
        said = (folder / "log.txt").read_text(errors="replace")
        if code is None:
            broken.append("it hangs")
        elif code and not any(name in said for name in NAMED):
            broken.append(f"not named: {last_words(folder)}")
        if (again := ended(start(training, folder, model))) != 0:
            broken.append(f"with space it ends by {again}: {last_words(folder)}")
    if differing := differences(whole, left_by(folder)):
        broken.append(f"differs in {differing}")
    full = f"no file beyond {size} bytes" if size else "full"
    return Found(f"{training}: {full} from change {event} on, exit code {code}", 1, broken)
