"""The catalogue of datasets: home, licence, pinned revision, and who reads the rows (`data/sources.yaml`)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from lib.runs import ROOT
from lib.sources import readers
from lib.sources.files import Row


@dataclass(frozen=True)
class Source:
    """Where a dataset comes from, under which licence, and how its rows are read.

    `revision` is a commit of the hub repository, or None where none is known: then it must be given.
    """

    read: Callable[[Row], dict[str, Any]] = field(repr=False)
    kind: str
    tier: str
    home: str
    licence: str
    hub: str | None = None
    revision: str | None = None
    configs: Sequence[str] = ("default",)
    splits: Mapping[str, str] = field(default_factory=lambda: {"train": "train", "test": "test"})
    note: str = ""


def _catalogue() -> dict[str, Source]:
    listed = yaml.safe_load((ROOT / "data" / "sources.yaml").read_text(encoding="utf-8"))
    return {
        name: Source(**entry | {"read": getattr(readers, entry["read"])}) for name, entry in listed.items()
    }


SOURCES: dict[str, Source] = _catalogue()
