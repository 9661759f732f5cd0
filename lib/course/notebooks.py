"""The notebooks of the course: find them, choose some, take their cells."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import nbformat

from lib.checked import close
from lib.runs import ROOT

NOTEBOOKS = ROOT / "notebooks"


class CourseError(Exception):
    """Something the user can put right; the message says what and where."""


def find_notebooks(folder: Path = NOTEBOOKS) -> list[Path]:
    """The notebooks of the course in reading order: 00_..., 01_..., and so on."""
    return sorted(folder.glob("[0-9][0-9]_*.ipynb"))


def find_solutions() -> list[Path]:
    """The solutions of the exercises, named like their notebooks."""
    return find_notebooks(NOTEBOOKS / "solutions")


def choose(notebooks: Sequence[Path], only: Sequence[str], start: str | None) -> list[Path]:
    """Pick notebooks by name or number, keeping the order."""

    def find(name: str) -> Path:
        for path in notebooks:
            if name.removesuffix(".ipynb") in (path.stem, path.stem[:2]):
                return path
        stems = [path.stem for path in notebooks]
        raise CourseError(f"There is no notebook {name!r}{close(name, stems)}. There are {', '.join(stems)}.")

    picked = [find(name) for name in only] or notebooks
    first = "" if start is None else find(start).stem
    return [path for path in notebooks if path in picked and path.stem >= first]


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def own_cells(executed: nbformat.NotebookNode) -> Iterator[nbformat.NotebookNode]:
    """The cells of the notebook itself, without those papermill put in."""
    for cell in executed.cells:
        tags = cell.metadata.get("tags", [])
        if not any(tag == "injected-parameters" or tag.startswith("papermill-error") for tag in tags):
            yield cell


def code_hash(notebook: nbformat.NotebookNode) -> str:
    """SHA-256 of the code cells, in order; what a stamp vouches for."""
    sources = [cell.source for cell in code_cells(notebook)]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def clock(seconds: float) -> str:
    """Seconds as minutes:seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
