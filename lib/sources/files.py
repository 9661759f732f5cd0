"""Rows out of jsonl, json, csv and parquet files, with their line numbers."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

Row = Mapping[str, Any]


class DataError(ValueError):
    """Data cannot be read; the message names the file, the line, the reason and the remedy."""


class RowError(ValueError):
    """One row cannot be used; the message is the reason."""


# ---- files ---------------------------------------------------------------------------------------
def file_rows(path: str | Path) -> Iterator[tuple[int, Row | RowError]]:
    """The rows of a file with their line numbers (parquet: row numbers)."""
    path = Path(path)
    if path.suffix not in (".jsonl", ".json", ".csv", ".parquet"):
        raise DataError(f"{path}: cannot read {path.suffix or 'this'}; use .jsonl, .json, .csv or .parquet")
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    if path.suffix == ".parquet":
        try:
            table = pd.read_parquet(path)
        except (ValueError, OSError) as error:
            raise DataError(f"{path}: not a readable parquet file ({error})") from None
        # By way of JSON, arrays become lists and missing cells None, as the hub's loader gives them.
        return enumerate(json.loads(table.to_json(orient="records", double_precision=15)), 1)
    # Bytes that are not UTF-8 are carried through, so that only the rows that hold them are broken.
    text = path.read_bytes().decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    if path.suffix == ".csv":
        return _csv_rows(text)
    return _json_rows(text) if text.lstrip().startswith("[") else _jsonl_rows(text)


def _jsonl_rows(text: str) -> Iterator[tuple[int, Row | RowError]]:
    # Not splitlines: a question may hold U+2028 and other separators that JSON leaves alone.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                yield number, RowError(f"not JSON: {error.msg} at column {error.colno}")


def _json_rows(text: str) -> Iterator[tuple[int, Row | RowError]]:
    """The elements of a JSON list, each with the line it starts on; after a broken one, from the next."""
    decoder = json.JSONDecoder()
    content, start_of_object = re.compile(r"[^\s,]|\Z"), re.compile(r"[,\n]\s*(?=\{)")
    counted, line = 0, 1
    position = next(content.finditer(text, text.index("[") + 1)).start()
    while position < len(text) and text[position] != "]":
        line += text.count("\n", counted, position)
        counted = position
        try:
            row, end = decoder.raw_decode(text, position)
            yield line, row
        except json.JSONDecodeError as error:
            yield line, RowError(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}")
            end = len(text)
            for candidate in start_of_object.finditer(text, position + 1):
                try:
                    decoder.raw_decode(text, candidate.end())
                except json.JSONDecodeError:
                    continue
                end = candidate.end()
                break
            else:
                return
        position = next(content.finditer(text, end)).start()
    if position == len(text):
        yield line + text.count("\n", counted), RowError("the file ends before the list is closed")


def _csv_rows(text: str) -> Iterator[tuple[int, Row | RowError]]:
    """CSV with a header; a list of choices is a cell of JSON."""
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey="", strict=True)
    end = 1
    while True:
        start = end + 1
        try:
            row = next(reader)
            end = reader.line_num
            if "" in row or None in row.values():
                yield start, RowError(f"not as many cells as the header has ({len(reader.fieldnames or ())})")
                continue
            for name in {"choices", "options"} & row.keys():
                row[name] = json.loads(row[name])
            yield start, row
        except StopIteration:
            return
        except (csv.Error, json.JSONDecodeError) as error:
            end = max(reader.line_num, start)
            yield start, RowError(f"not CSV: {error} (up to line {end})")
