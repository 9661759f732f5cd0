"""Rows out of jsonl, json, csv and parquet files, with their numbers."""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

Row = Mapping[str, Any]
UNREADABLE = (ValueError, RecursionError)  # of JSON: wrong, a number with too many digits, too deep


class DataError(ValueError):
    """Data cannot be read; the message names the file, the line, the reason and the remedy."""


class RowError(ValueError):
    """One row cannot be used; the message is the reason."""


Rows = Iterable[tuple[int, Row | RowError]]  # with their numbers


def file_rows(path: str | Path) -> Rows:
    """The rows of a file with their line numbers (parquet and lists of JSON: row numbers)."""
    path = Path(path)
    if path.suffix not in (".jsonl", ".json", ".csv", ".parquet"):
        raise DataError(f"{path}: cannot read {path.suffix or 'this'}; use .jsonl, .json, .csv or .parquet")
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    try:
        if path.suffix == ".parquet":
            # By way of JSON, arrays become lists and missing cells None, as the hub's loader gives them.
            table = pd.read_parquet(path).to_json(orient="records", double_precision=15)
            return enumerate(json.loads(table), 1)
        # Bytes that are not UTF-8 are carried through, so that only the rows that hold them are broken.
        text = path.read_bytes().decode("utf-8", "surrogateescape").removeprefix("\ufeff")
        if path.suffix == ".json" and text.lstrip().startswith("["):
            return enumerate(json.loads(text), 1)
        return list(_csv_rows(text) if path.suffix == ".csv" else _jsonl_rows(text))
    except (*UNREADABLE, OSError, csv.Error) as error:
        raise DataError(f"{path}: not a readable {path.suffix[1:]} file ({error})") from None


def _jsonl_rows(text: str) -> Rows:
    # Not splitlines: a question may hold U+2028 and other separators that JSON leaves alone.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except UNREADABLE as error:
                yield number, RowError("not JSON: " + str(error).replace(": line 1 column", " at column"))


def _csv_rows(text: str) -> Rows:
    """CSV with a header; a list of choices is a cell of JSON."""
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey="", strict=True)
    end = 1
    for row in reader:
        start, end = end + 1, reader.line_num
        try:
            if "" in row or None in row.values():
                raise RowError(f"not as many cells as the header has ({len(reader.fieldnames or ())})")
            yield start, row | {name: json.loads(row[name]) for name in row.keys() & {"choices", "options"}}
        except UNREADABLE as error:
            yield start, RowError(f"not CSV: {error}")
