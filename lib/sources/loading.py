"""Real datasets as one kind of record, from the hub at a pinned revision or from a local file.

A broken row is an error that names file, line and reason. Asked to go on, `load` returns it as a
problem beside the rest: rows read = examples + problems, always. Both ways in give the same examples.
"""

import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets

from lib.runs import located
from lib.sources.catalogue import SOURCES, Source
from lib.sources.files import DataError, Row, RowError, Rows, file_rows
from lib.tasks import Task, question_key

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

datasets.disable_progress_bars()  # a saved notebook needs none

_BROKEN_TEXT = re.compile("[\ud800-\udfff\ufffd]")


@dataclass(frozen=True)
class Loaded:
    """What was read: every row is an example, or a problem that names file, place and reason.

    The place is the line of a .jsonl or .csv file, else the number of the row; both count from 1.
    """

    examples: list[Task]
    problems: list[str]


Loader = Callable[..., list[Task]]  # (count, *, split, seed, **options)
_WORLDS: dict[str, Loader] = {}


def register(name: str, loader: Loader) -> None:
    """Make a world of questions that are drawn, not read, known to `load_tasks` by a name of its own."""
    _WORLDS[name] = loader


def load_tasks(
    names: Sequence[str],
    *,
    split: str = "test",
    count: int | None = None,
    seed: int = 0,
    folder: str | Path = "",
    fits: Callable[[Task], bool] | None = None,
    **options: Any,
) -> list[Task]:
    """Tasks of one split, `count` in all, as evenly from each source as can be.

    Of a dataset, from the hub or from `folder`/<name>_<split>.jsonl (or that file itself), a seeded sample
    without repetition, or all there is; `fits` may leave questions out, see `fits_in`. Its split "validation"
    is a twentieth of the training questions, which "train" then leaves out. `options` are for
    registered worlds, which draw their questions: the dial world has depths, distinct, world and sft_share.
    """
    if isinstance(names, str) or not names:
        raise DataError(f"sources must be a list of names, got {names!r}")
    if unknown := [name for name in names if name not in (*_WORLDS, *SOURCES)]:
        raise DataError(f"unknown source {unknown[0]!r}; there are {', '.join((*_WORLDS, *SOURCES))}")
    if count is not None and count < len(names):
        raise DataError(f"count must be {len(names)} or more, one question a source, got {count}")
    tasks: list[Task] = []
    for place, name in enumerate(names):
        share = None if count is None else count // len(names) + (place < count % len(names))
        if name in _WORLDS:
            if share is None:
                raise DataError(f"the questions of {name} are drawn: say how many (count=)")
            tasks += _WORLDS[name](share, split=split, seed=seed, **options)
            continue
        found = [task for task in _split(name, split, folder) if fits is None or fits(task)]
        if share is not None and share < len(found):
            found = random.Random(f"{seed}|{name}|{split}").sample(found, share)
        tasks += found
    return tasks


def _split(name: str, split: str, folder: str | Path) -> list[Task]:
    """The questions of one split of a dataset."""
    stored = "train" if split == "validation" else split
    path = located(str(folder)) if folder else None
    if path is not None and not path.is_file():
        path /= f"{name}_{stored}.jsonl"
    tasks = load(name, path, split=stored).examples
    if stored != "train":
        return tasks
    by_key = sorted(task.key for task in tasks)  # hashes: the same questions in every run
    last_held_out = by_key[max(0, len(by_key) // 20 - 1)]
    held_out = split == "validation"
    return [replace(task, split=split) for task in tasks if (task.key <= last_held_out) == held_out]


def fits_in(tokenizer: "PreTrainedTokenizerBase", max_prompt_tokens: int) -> Callable[[Task], bool]:
    """Whether the prompt of a task has at most so many tokens: what `load_tasks` may ask for."""
    return lambda task: len(tokenizer(task.prompt).input_ids) <= max_prompt_tokens


def load(
    source: str,
    path: str | Path | None = None,
    *,
    split: str = "test",
    keep_going: bool = False,
    hub: str | None = None,
    revision: str | None = None,
) -> Loaded:
    """Read a source from a jsonl, json, csv or parquet file, or without `path` from the hub, pinned.

    `split` is train or test; on the hub it chooses the data, with a file it says what the file is.
    The first broken row raises DataError; with `keep_going` all are returned as problems.
    """
    if source not in SOURCES:
        raise DataError(f"unknown source {source!r}; there are {', '.join(SOURCES)}")
    if path is None:
        name, rows = _hub_rows(SOURCES[source], split, hub, revision)
    else:
        name, rows = str(path), file_rows(path)
    where = f"{name}, {'line' if name.endswith(('.jsonl', '.csv')) else 'row'}"
    loaded = read_rows(source, rows, split=split, where=where, keep_going=keep_going)
    if not loaded.examples and not loaded.problems:
        raise DataError(f"{name} holds no rows")
    return loaded


def read_rows(
    source: str, rows: Rows, *, split: str = "test", where: str = "rows, row", keep_going: bool = False
) -> Loaded:
    """Turn numbered rows into examples, e.g. `read_rows("gsm8k", enumerate(dataset, 1))`."""
    examples, problems = [], []
    for number, row in rows:
        try:
            if isinstance(row, RowError):
                raise row
            examples.append(_example(source, row, split))
        except RowError as error:
            problems.append(f"{where} {number}: {error}")
            if not keep_going:
                remedy = "Mend the row, or load with keep_going=True to leave it out."
                raise DataError(f"{problems[-1]}. {remedy}") from None
    return Loaded(examples, problems)


def _example(source: str, row: Row, split: str) -> Task:
    if not isinstance(row, Mapping):
        raise RowError(f"the row is not an object but {type(row).__name__}")
    if broken := _BROKEN_TEXT.search(json.dumps(row, ensure_ascii=False, default=str)):
        code = ord(broken[0])
        reason = f"byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"character U+{code:04X}"
        raise RowError(f"the row is not UTF-8 text, or was decoded wrongly before: {reason}")
    try:
        fields = SOURCES[source].read(row)
    except (AttributeError, KeyError, TypeError) as error:  # a field of another shape than any we know
        raise RowError(f"a field has an unknown shape ({type(error).__name__}: {error})") from None
    fields = {"kind": SOURCES[source].kind, "tier": SOURCES[source].tier, **fields}
    return Task(f"{source}/{question_key(fields['question'])}", source=source, split=split, **fields)


def _hub_rows(source: Source, split: str, hub: str | None, revision: str | None) -> tuple[str, Rows]:
    """The rows of a hub repository at a pinned commit, all configs one after the other."""
    hub, revision = hub or source.hub, revision or source.revision
    if hub is None:
        raise DataError(f"no hub repository is known for {source.home}: give path=, or hub= and revision=")
    if revision is None or not re.fullmatch("[0-9a-f]{40}", revision):
        raise DataError(
            f"{hub} must be pinned: give revision= a full commit hash of 40 digits, not {revision!r}; "
            "a branch may change under you"
        )
    if split not in source.splits:
        raise DataError(f"{hub} has no split {split!r} here; there are {', '.join(source.splits)}")

    def rows() -> Iterator[Row]:
        for config in source.configs:
            try:
                table = datasets.load_dataset(hub, config, split=source.splits[split], revision=revision)
            except ConnectionError as error:
                raise DataError(f"{error}. Without a network, give path= a local file.") from error
            yield from ({**row, "task": config} if len(source.configs) > 1 else row for row in table)

    return f"{hub}@{revision[:7]}", enumerate(rows(), 1)
